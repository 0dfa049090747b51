"""The layers of a network one after the other: which, in how much memory, and what is refined afterwards."""
