"""The board's application, label `bbs`."""
