"""Figures of runs, evaluations, studies and the paper, drawn with matplotlib."""
