"""Sphinx's settings for the course's site; `python3 course.py site` stages the sources and runs it."""

from pathlib import Path

from course_tools.lessons.notebooks import Course

ROOT = Path(__file__).resolve().parents[1]
COURSE = Course.read(ROOT)

project = "Pruning LLMs"
author = "The Pruning LLMs authors"
project_copyright = "The Pruning LLMs authors; prose and figures CC BY 4.0, code Apache-2.0"
language = "en"
extensions = [
    "myst_nb",
    "autoapi.extension",
    "sphinx.ext.napoleon",  # docstrings in Google's style
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxext.opengraph",  # what a shared link shows
    "course_tools.site.extension",
]

nb_execution_mode = "off"  # the outputs are the saved ones
nb_number_source_lines = False
myst_enable_extensions = ["colon_fence", "dollarmath", "amsmath", "deflist"]
myst_heading_anchors = 4
html_math_renderer = "mathml"  # of course_tools.site.extension: no script, no network

# Read, not imported.
autoapi_dirs = [str(ROOT / "course_utils")]
autoapi_root = "api"
autoapi_add_toctree_entry = False
autoapi_template_dir = str(ROOT / "docs" / "templates" / "autoapi")
# Attributes stand in their class's own list; names come first, each with its line.
autoapi_options = ["members", "show-inheritance", "show-module-summary"]
autoapi_python_class_content = "class"
autoapi_member_order = "bysource"
python_use_unqualified_type_names = True
add_module_names = False
napoleon_use_ivar = True

html_theme = "sphinx_book_theme"
html_title = project
html_baseurl = COURSE.site
html_favicon = "static/favicon.svg"
moved = {
    f"notebooks/{folder}{old}": f"notebooks/{folder}{now}"
    for old, now in {
        "11_a_model_like_the_labs_make": "14_a_model_like_the_labs_make",
        "12_what_breaks_first": "11_what_breaks_first",
        "13_mixtures_of_experts": "12_mixtures_of_experts",
    }.items()
    for folder in ("", "solutions/")
}  # old name of a page -> its name now
html_additional_pages = {"404": "404.html"} | dict.fromkeys(moved, "moved.html")  # the first is GitHub Pages' name
html_static_path = ["static"]
html_css_files = ["course.css"]
html_js_files = ["course.js", "calculator.js"]
html_copy_source = html_show_sourcelink = False
html_use_index = html_domain_indices = False  # the search finds names
html_last_updated_fmt = None  # the same sources give the same pages
templates_path = ["templates"]
html_context = {"address": COURSE.site, "moved": moved, "default_mode": "auto"}  # light or dark, as readers have it
html_theme_options = {
    "repository_url": f"https://github.com/{COURSE.repository}",
    "repository_branch": COURSE.ref,
    "path_to_docs": "",  # sources are staged under the repository's own paths
    "use_repository_button": True,
    "use_download_button": False,  # the sources are in the repository
    "launch_buttons": {"colab_url": "https://colab.research.google.com"},
    "show_toc_level": 2,
    "navbar_persistent": [],  # a second search box otherwise
    "home_page_in_toc": True,
    "collapse_navbar": True,  # a page lists its own branch alone: a quarter less to build, a tenth less to load
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
ogp_site_url = COURSE.site
ogp_image = "_images/criteria.png"
ogp_image_alt = "One model, the same cut, three ways of choosing the neurons: a popular one loses to chance."
ogp_social_cards = {"enable": False}  # pictures of pages' titles, drawn with matplotlib
ogp_custom_meta_tags = ['<meta name="twitter:card" content="summary_large_image" />']
copybutton_exclude = ".linenos, .gp, .go"
