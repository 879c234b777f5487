"""How the site looks: Sphinx's settings. Its pages are listed in benchmarks/course_site.py."""

project = "LoRA vs DreamBooth Workbench"
html_title = project
language = "en"

extensions = ["myst_nb"]
nb_execution_mode = "off"  # what a run has executed is shown, and nothing is run again
nb_merge_streams = True
nb_ipywidgets_js = {}  # panels leave a picture and a line; their code would come from elsewhere
myst_enable_extensions = ["html_image"]  # <img> in Markdown is a picture as well
myst_heading_anchors = 6  # links to headings, as on GitHub
suppress_warnings = ["config.cache", "misc.highlighting_failure"]

html_theme = "furo"
html_theme_options = {"navigation_with_keys": True}  # arrow keys: the page before, the page after
html_sourcelink_suffix = ""
html_show_copyright = False
html_use_index = False
html_static_path = ["site.css"]
html_css_files = ["site.css"]
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"
