"""Hostile user input, by the kind of attack. A page must show all of it as text.

A script that runs sets `window.__xss`; an element that is created has the attribute `data-xss`.
"""

HOSTILE = {
    "script": "<script data-xss>window.__xss = 'script'</script>",
    "script ends": "</script><script data-xss>window.__xss = 'script ends'</script>",
    "image": "<img data-xss src=x onerror=\"window.__xss = 'image'\">",
    "double quotes": '" data-xss autofocus tabindex=1 onfocus="window.__xss = \'double quotes\'" x="',
    "single quotes": "' data-xss autofocus tabindex=1 onfocus='window.__xss = 1' x='",
    "no quotes": "x data-xss onmouseover=window.__xss=1 style=position:fixed;inset:0",
    "svg": '<svg data-xss/onload="window.__xss = \'svg\'"><animate onbegin="window.__xss = 1">',
    "address": "javascript:window.__xss='address'//",
    "template": "{{7*7}}${7*7}<%= 7*7 %>#{7*7}{% raw %}",
    "htmx": '<div data-xss hx-get="/dashboard" hx-trigger=load hx-on::load="window.__xss = \'htmx\'"></div>',
    "form": '<form data-xss action="https://example.invalid"><button autofocus>登录 sign in</button></form>',
    "comment": "<!-- <b data-xss> --!><i data-xss>--><textarea><title><style>*{display:none}",
    "entities": "&lt;b data-xss&gt;&#60;i data-xss&#62;&amp;nbsp;&zwnj;",
    "event": "圆\n\nevent: end\ndata: <b data-xss>\n\nid: 1",
    "invisible characters": "\u200b\u2060\ufeff\u00ad零宽",
    "right to left": "红色\u202e形圆的色蓝\u2066<b data-xss>\u2067 gnp.exe",
    "long word": "很长" * 80 + "W" * 160,
    "combining marks": "圆" + "\u0301\u0327\u0489" * 40,
}
