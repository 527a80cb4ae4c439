"""The compiler's front end: from a model to affine maps with polynomials between them."""
