"""How Sphinx makes a site of the pages, by the command in CONTRIBUTING.md.

The pages are the Markdown files where they lie in the repository, so their links hold there as well
as in the site. The site fetches nothing from elsewhere: fonts are the reader's, and formulas are
MathML, which browsers draw themselves.
"""

import re

from docutils import nodes
from docutils.utils.math import latex2mathml

project = "msgd"
root_doc = "docs/index"
include_patterns = [
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "config/README.md", "results/README.md"),
    *("docs/*.md", "docs/published/*.md"),
]
exclude_patterns = [".*", "build", "results/[a-z]*", "src", "tests", "benchmarks", "workflow"]

extensions = ["myst_parser"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3  # of headings, as GitHub makes them; a link to none is a warning
html_math_renderer = "mathml"

html_theme = "furo"
html_title = "msgd"
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
html_use_index = False
html_static_path = ["site/msgd.css"]
html_css_files = ["msgd.css"]
html_additional_pages = {"index": "redirect.html"}  # from the site's folder to its first page
templates_path = ["site"]


def add_contents(app, document, content):
    """Append to the index page what the sidebar shows: a toctree of each section's links.

    So the page lists every other one once, in Markdown that reads well without Sphinx. And give the
    table of published runs a title.
    """
    if document == "docs/published/published":  # a table that a command wrote
        content[0] = f"# The published runs\n\n{content[0]}"
    if document != root_doc:
        return
    for section in re.split(r"^## ", content[0], flags=re.MULTILINE):
        pages = re.findall(r"\]\((\S+)\.md\)", section)
        caption = "" if section.startswith("# ") else section.partition(":")[0]
        lines = ["```{toctree}", ":hidden:", f":caption: {caption}".rstrip(), *pages, "```"]
        content[0] += "\n" + "\n".join(line for line in lines if line != ":caption:") + "\n"


def write_formula(writer, node, as_block):
    """Write a formula as MathML, in place of its LaTeX."""
    mathml = latex2mathml.tex2mathml(node.astext(), as_block=as_block)
    writer.body.append(f'<div class="formula">{mathml}</div>' if as_block else mathml)
    raise nodes.SkipNode


def setup(app):
    """Make the two known to Sphinx."""
    app.connect("source-read", add_contents)
    app.add_html_math_renderer(
        "mathml",
        inline_renderers=(lambda writer, node: write_formula(writer, node, False), None),
        block_renderers=(lambda writer, node: write_formula(writer, node, True), None),
    )
