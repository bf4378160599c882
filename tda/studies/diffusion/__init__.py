"""What the chapters on diffusion models share: pictures of small images, and what memorising them would look like."""
