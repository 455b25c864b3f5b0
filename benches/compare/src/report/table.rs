//! The report as tables: for the terminal, and in Markdown.
