"""Fine-tuning: one LightningModule, its optimiser groups, its schedule, and the fit."""
