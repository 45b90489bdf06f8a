"""What an analysis finds, and the statistics behind it: resampling, regression, discrimination, similarity."""
