"""What people read about a run: ``report.html``, ``loss.png``, the model card, notebook views."""
