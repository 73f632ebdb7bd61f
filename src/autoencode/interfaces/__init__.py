"""Ways to call the package from outside Python."""
