"""Fine-tuning: one LightningModule, its optimizer groups, its schedule, and the fit."""
