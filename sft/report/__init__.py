"""``report.html``: what it says of a run or of predictions, and how it is put on one page."""
