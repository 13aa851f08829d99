"""The registration network that ships: endless generated pairs, its training, its weights."""
