"""What a run writes about itself: metrics, plots, report, model."""
