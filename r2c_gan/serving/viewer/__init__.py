"""The viewer: a local web page that restores one radiograph at a time. Needs Gradio (the extra `view`)."""
