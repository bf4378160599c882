"""Chapter 21: rungs of a ladder of curvature matrices, from the Hessian down, and what tells them apart."""
