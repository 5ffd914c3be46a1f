"""Full loads that workers do once for all of them."""
