"""Reports to look at: self-contained HTML pages and pictures, as text and bytes.

Takes results and JSON-ready documents; opens no files and prints nothing. The libraries that draw
are optional (``pip install 'prunectl[report]'``) and loaded when a report is made.
"""
