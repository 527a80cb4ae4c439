"""Programs for whoever changes this project: pictures, test vectors, a headless browser."""
