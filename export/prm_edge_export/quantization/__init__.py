"""int8 for the CPU: calibrate layer by layer, fold, compensate, plan, and build the graph."""
