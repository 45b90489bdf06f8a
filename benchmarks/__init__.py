"""Speed, counted and measured against a baseline in the same run; figures go to results/reference/."""
