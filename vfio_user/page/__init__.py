"""The page of a run or a trace: one HTML file, without a network, with the cause and all that happened on one axis.

`document.write_page` makes it of a folder in which the files of a run lie by their names, or of one trace.
"""
