"""Deep belief network: stacked restricted Boltzmann machines, fine-tuned as a classifier."""
