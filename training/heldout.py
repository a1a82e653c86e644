"""Sentence patterns for evaluation only, in other styles than those of training.

Symbols are those of `training.grammar`. Whole patterns are held out, not only words. `tests/unit/training` checks that
no pattern with a background shares its frame with the grammar.
"""

RULES: dict[str, tuple[str, ...]] = {
    "single-on": (
        "打开窗户看见<m><c><s>，窗外是一整片<bn>",
        "我家孩子要<m><c><s>的贴画，底板裁<bn>的",
        "<b><g>安静地铺开，<m><c><s>独自待在那里",
        "海报设计需求：<bn><g>；<m><c><s>",
        "想象一下，<m><c><s>，身后是<bn>的<g>",
        "老板说<g>必须<bn>，图形必须是<c><s>",
        "可否绘一枚徽章：底面<bn>，纹样为<c><s>",
        "<c><s>被<b><g>包围",
        "全图只见<bn>，唯独中心有<m><c><s>",
        "<bn>的世界里住着<m><c><s>",
        "练习题：请在<b><g>上描出<m><c><s>",
        "壁纸，<b><g>，<c><s>，简约",
        "<m><s>，要求<cn>；至于<g>嘛，<bn>就好",
        "今天学画画，<g>先上<bn>，接着描<m><c><s>",
        "卡片一张，<bn>作<g>，<c><s>居于正中",
        "<s>图案，通体<cn>，映在<b><g>上",
        "谁能给我<m>带<b><g>的<c><s>",
        "图片要求如下：一、<g><bn>；二、<m><c><s>",
        "<bn>当作<g>来用，<s>则用<cn>",
        "那<m><c><s>真好看，尤其配上<bn>的<g>",
        "用<cn>颜料描一<s>，<g>留给<bn>",
        "屏幕一片<bn>，缓缓浮出<m><c><s>",
        "找一张<g>为<bn>、内容为<c><s>的图",
        "<c><s>一枚，<b><g>一面",
        "朋友过生日，送<m><c><s>，包装用<bn>的<g>",
        "在我的想象中，<g>是<bn>，<s>是<cn>",
        "<cn>是<s>的颜色，<bn>是<g>的颜色",
        "<g>填入<bn>即可，里面安放<m><c><s>",
        "关于<m><c><s>的插图，<g>偏<bn>",
        "不如把<c><s>搬到<b><g>上来",
    ),
    "single": (
        "我家孩子最爱<m><c><s>",
        "梦里见到<m><c><s>",
        "老师让我们描<m><c><s>",
        "可否绘<m><c><s>？",
        "贴纸图样：<c><s>一枚",
        "<cn>颜料描成的<s>",
        "这<s>应当是<cn>才对",
        "找一<m><c><s>的图",
        "简简单单<m><c><s>足矣",
        "通体<cn>的<s>",
    ),
}
