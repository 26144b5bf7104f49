"""The tables of the paper and the runs behind them."""
