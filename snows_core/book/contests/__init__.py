"""Minimisers of the K-step loss against each other on the layers of one network: fits, a meter, a race, its figures."""
