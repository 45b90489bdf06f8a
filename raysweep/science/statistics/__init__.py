"""Findings, and the statistics behind them."""
