"""Text normalisation, error rates and RESULTS.md."""
