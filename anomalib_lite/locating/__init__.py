"""Where in an image: from the scores of patches to maps of pixels, and to regions with an outline."""
