"""What people look at: figures, tables, the HTML report. It draws and writes; nothing is computed here."""
