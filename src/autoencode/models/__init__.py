"""Networks, the autoencoder made of them, and the one file that holds a trained one."""
