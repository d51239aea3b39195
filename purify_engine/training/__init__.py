"""Training of the three networks: the noise predictor, the guide, and a plain classifier to protect."""
