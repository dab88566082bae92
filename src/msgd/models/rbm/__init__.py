"""Restricted Boltzmann machine, trained by (persistent) contrastive divergence."""
