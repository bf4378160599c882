"""What matrices and methods both stand on: gradients, the memory of shared work, checks at the door."""
