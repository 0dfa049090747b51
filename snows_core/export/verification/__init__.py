"""Whether zeros are where they were promised to be, in whatever file it is."""
