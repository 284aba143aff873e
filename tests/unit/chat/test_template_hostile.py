"""Templates that attack: each ends in our error within its budget, and none reaches what is not its own."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen_edge.chat import template_limits
from qwen_edge.chat.template import ChatTemplate
from qwen_edge.config import LoadConfig
from qwen_edge.engines.fake import FakeEngine
from qwen_edge.errors import TemplateError
from qwen_edge.model import Model
from qwen_edge.types import Message

USER = [Message("user", "Hi")]
START = "{% set ns = namespace(s='ab', l=['a'], t=('a',), n=1) %}"
# What a test gives a template to spend, so that attacks end in milliseconds; some are run with the real budget below.
SMALL_WORK, SMALL_CHARS = 300_000, 100_000


def often(body: str, times: int = 99999) -> str:
    return START + "{% for i in range(" + str(times) + ") %}" + body + "{% endfor %}"


def doubly_often(body: str) -> str:
    return often("{% for j in range(99999) %}" + body + "{% endfor %}")


BOMBS = {
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'x' as y %}",
    "from": "{% from 'x' import y %}",
    "extends": "{% extends 'x' %}",
    "block": "{% block a %}{{ self.a() }}{% endblock %}",
    "class": "{{ ''.__class__.__mro__ }}",
    "lipsum": "{{ lipsum.__globals__ }}",
    "lipsum2": "{{ lipsum(10**9) }}",
    "cycler": "{{ cycler.__init__.__globals__.os }}",
    "joiner": "{{ joiner.__init__.__globals__.os }}",
    "ns": "{{ namespace.__init__.__globals__.x }}",
    "self": "{{ self._TemplateReference__context.x }}",
    "fmt": "{{ '{0.__class__.__mro__}'.format('x') }}",
    "fmtmap": "{{ '{x.__class__.__mro__}'.format_map({'x':1}) }}",
    "mapattr": "{{ [''] | map(attribute='__class__.__mro__') | list }}",
    "attrfmt": "{{ ''|attr('format') }}{{ ('{0.__class__.__base__}'|attr('format'))(1) }}",
    "macroglob": "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "loopattr": "{% for x in [1] %}{{ loop._iterator.y }}{% endfor %}",
    "env": "{{ m.__call__.x.y }}",
    "joinfmt": "{{ ['{0.__class__.__mro__}']|map('format', 1)|join }}{{ ''.mro.x }}",
    "nest": doubly_often(""),
    "nesttest": "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "nest4": "{% for i in range(99999) %}{% for i in range(99999) %}{% for i in range(99999) %}{% for i in range(99999) %}x{% endfor %}{% endfor %}{% endfor %}{% endfor %}",
    "recloop": "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "recmacro": "{% macro m(n) %}{{ m(n+1) }}{% endmacro %}{{ m(0) }}",
    "expmacro": "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(50) }}",
    "callrec": "{% macro m(n) %}{% call m(n-1) %}{% endcall %}{% call m(n-1) %}{% endcall %}{% endmacro %}{{ m(50) }}",
    "macroself": "{% macro a(f) %}{{ f(f) }}{{ f(f) }}{% endmacro %}{{ a(a) }}",
    "mul": "{{ 'a' * 10**10 }}",
    "mul2": "{{ 10**10 * 'a' }}",
    "mull": "{{ ([1] * 10**10)|length }}",
    "pct": "{{ '%1000000000d' % 1 }}",
    "pct2": "{{ '%*d' % (10**9, 1) }}",
    "pct3": "{{ '%.1000000000f' % 1 }}",
    "pct4": "{{ ('%(a)s' * 100000) % {'a': 'x' * 100000} }}",
    "fmtw": "{{ '{:1000000000}'.format(1) }}",
    "fmtw2": "{{ '{:{w}}'.format(1, w=10**9) }}",
    "fmt3": "{{ ('{0}' * 100000).format('x' * 100000) }}",
    "fmt4": "{{ '{:>1000000000}'.format('x') }}",
    "fmt5": "{{ '{:.1000000000f}'.format(1.0) }}",
    "center": "{{ 'x'|center(10**10) }}",
    "center2": "{{ 'x'|center(width=10**9) }}",
    "indent": "{{ 'a\nb'|indent(10**9) }}",
    "indent2": "{{ ('a\n'*100000)|indent('x'*100000) }}",
    "ljust": "{{ 'x'.ljust(10**9) }}",
    "rjust": "{{ 'x'.rjust(10**9) }}",
    "zfill": "{{ 'x'.zfill(10**9) }}",
    "mcenter": "{{ 'x'.center(10**9) }}",
    "tabs": "{{ '\t'.expandtabs(10**9) }}",
    "tabs2": "{{ '\t'.expandtabs(tabsize=10**9) }}",
    "dbl~": often("{% set ns.s = ns.s ~ ns.s %}"),
    "dbl+": often("{% set ns.s = ns.s + ns.s %}"),
    "dblrep": often("{% set ns.s = ns.s|replace('a', ns.s) %}"),
    "dblrep2": often("{% set ns.s = ns.s.replace('a', ns.s) %}"),
    "dblrep3": often("{% set ns.s = ns.s.replace('', ns.s) %}"),
    "dbljoin": often("{% set ns.s = [ns.s, ns.s]|join %}"),
    "dbljoin2": often("{% set ns.s = ns.s.join([ns.s, ns.s]) %}"),
    "dbljoin3": often("{% set ns.s = ns.s|list|join(ns.s) %}"),
    "dblset": often("{% set x %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = x %}"),
    "dblfilt": often(
        "{% set x %}{% filter upper %}{{ ns.s }}{{ ns.s }}{% endfilter %}{% endset %}{% set ns.s = x %}"
    ),
    "dblmacro": often("{% macro m(a) %}{{ a }}{{ a }}{% endmacro %}{% set ns.s = m(ns.s) %}"),
    "dblfmt": often("{% set ns.s = '{0}{0}'.format(ns.s) %}"),
    "dblpct": often("{% set ns.s = '%s%s' % (ns.s, ns.s) %}"),
    "dbllist": often("{% set ns.l = ns.l + ns.l %}"),
    "dbltup": often("{% set ns.t = ns.t + ns.t %}"),
    "dblmul": often("{% set ns.s = ns.s * 2 %}"),
    "dblesc": often("{% set ns.s = ns.s ~ '&' %}{% set ns.s = ns.s|e|string %}"),
    "dblurl": often("{% set ns.s = (ns.s ~ '%')|urlencode %}"),
    "dbljson": often("{% set ns.s = ns.s|tojson %}"),
    "dblslice": often("{% set ns.s = ns.s[0:] + ns.s[::-1] %}"),
    "dblsafe": often("{% set ns.s = (ns.s ~ '<')|safe + ns.s %}"),
    "dagstr": often("{% set ns.l = [ns.l, ns.l] %}", 50) + "{{ ns.l }}",
    "dagjson": often("{% set ns.l = [ns.l, ns.l] %}", 50) + "{{ ns.l|tojson }}",
    "dageq": often("{% set ns.l = [ns.l, ns.l] %}{% set ns.t = [ns.t, ns.t] %}", 50) + "{{ ns.l == ns.t }}",
    "dagin": often("{% set ns.l = [ns.l, ns.l] %}{% set ns.t = [ns.t, ns.t] %}", 50) + "{{ ns.l in [ns.t] }}",
    "daghash": often("{% set ns.t = (ns.t, ns.t) %}", 50) + "{{ {ns.t: 1} }}",
    "daghash2": often("{% set ns.t = (ns.t, ns.t) %}", 50) + "{{ {}[ns.t] }}",
    "daghash3": often("{% set ns.t = (ns.t, ns.t) %}", 50) + "{{ {}.get(ns.t) }}",
    "daghash4": often("{% set ns.t = (ns.t, ns.t) %}", 50) + "{{ dict([(ns.t, 1)]) }}",
    "dagis": often("{% set ns.l = [ns.l, ns.l] %}{% set ns.t = [ns.t, ns.t] %}", 50)
    + "{{ ns.l is eq ns.t }}",
    "dagstrf": often("{% set ns.l = [ns.l, ns.l] %}", 50) + "{{ ns.l|string }}",
    "dagcat": often("{% set ns.l = [ns.l, ns.l] %}", 50) + "{{ ns.l ~ '' }}",
    "dagfmt": often("{% set ns.l = [ns.l, ns.l] %}", 50) + "{{ '{}'.format(ns.l) }}",
    "dagpct": often("{% set ns.l = [ns.l, ns.l] %}", 50) + "{{ '%s' % (ns.l,) }}",
    "dagns": often("{% set ns.l = [ns.l, ns.l] %}", 50) + "{{ ns }}",
    "dagidx": often("{% set ns.l = [ns.l, ns.l] %}{% set ns.t = [ns.t, ns.t] %}", 50)
    + "{{ [ns.l].index(ns.t) }}",
    "dagviews": often("{% set ns.l = [ns.l, ns.l] %}", 50) + "{{ {'a': ns.l}.items() }}",
    "dagraise": often("{% set ns.l = [ns.l, ns.l] %}", 50) + "{{ raise_exception(ns.l) }}",
    "dagchanged": "{% set ns = namespace(l=[1],t=[1]) %}{% for i in range(50) %}{% set ns.l = [ns.l, ns.l] %}{% set ns.t = [ns.t, ns.t] %}{% endfor %}{% for i in [1,2] %}{% if i == 1 %}{{ loop.changed(ns.l) }}{% else %}{{ loop.changed(ns.t) }}{% endif %}{% endfor %}",
    "dagmacrodef": often("{% set ns.l = [ns.l, ns.l] %}", 50)
    + "{% for x in [1] %}{{ loop.cycle(ns.l) }}{% endfor %}",
    "dagsum": often("{% set ns.l = ns.l + ns.l %}", 15) + "{{ ns.l|map('list')|sum(start=[]) }}",
    "deeptuple": often("{% set ns.t = (ns.t,) %}") + "{{ {ns.t: 1} }}",
    "deeplist": often("{% set ns.l = [ns.l] %}") + "{{ ns.l }}",
    "deeplist2": often("{% set ns.l = [ns.l] %}") + "{{ ns.l|tojson }}",
    "deeptuple2": often("{% set ns.t = (ns.t,) %}") + "{% set x = ns.t in {} %}{{ {}|attr(ns.t) }}",
    "deepuniq": often("{% set ns.t = (ns.t,) %}") + "{{ [ns.t]|unique|list }}",
    "deepsame": often("{% set ns.t = (ns.t,) %}")
    + "{{ ns.t is sameas 1 }}{{ ns.t|default(1)|length }}{{ ns.t|first|length }}{{ raise_exception('ok') }}",
    "deepgroup": often("{% set ns.t = (ns.t,) %}") + "{{ [{'a': ns.t}]|groupby('a') }}",
    "deepmapattr": often("{% set ns.t = (ns.t,) %}") + "{{ [{}]|map(attribute=ns.t)|list }}",
    "deepselect": often("{% set ns.t = (ns.t,) %}") + "{{ [ns.t]|select('in', {})|list }}",
    "deepcaller": often("{% set ns.t = (ns.t,) %}")
    + "{% macro m(x) %}{{ {x: 1} }}{% endmacro %}{{ m(ns.t) }}",
    "deepkw": often("{% set ns.t = (ns.t,) %}") + "{{ '%s' % {'a': ns.t} }}",
    "pow2": often("{% set ns.n = (ns.n + 1) * (ns.n + 1) %}"),
    "pow3": often("{% set ns.n = ns.n - (0 - ns.n) %}"),
    "pow4": "{{ 2**4096*2**4096 }}",
    "intf": "{{ (('f' * 900000)|int(base=16) * 3) }}",
    "shift": "{{ -(10**1000) ** 3 }}",
    "batch": "{{ [1]|batch(10**9, 'x')|list }}",
    "slice": "{{ [1]|slice(10**9)|list }}",
    "slice2": "{% for x in [1]|slice(10**9) %}{% endfor %}",
    "jsonindent": "{{ [1]|tojson(indent=10**9) }}",
    "jsonindent2": "{{ [1]|tojson(indent='x'*100000) }}",
    "jsonsep": "{{ [1,2]|tojson(separators=('x'*1000000,'')) }}",
    "round": "{{ 1|round(10**9,'floor') }}",
    "round2": "{{ 1|round(-10**9) }}",
    "range": "{{ range(10**9) }}",
    "range2": doubly_often("{{ range(99999)|list|length }}"),
    "rangein": often("{% if 'x' in range(99999) %}{% endif %}"),
    "rangejoin": often("{{ range(99999)|join }}"),
    "slicecost": START
    + "{% set ns.s = 'ab' * 400000 %}{% for i in range(99999) %}{% set x = ns.s[1:] %}{% endfor %}",
    "upcost": START
    + "{% set ns.s = 'ab' * 400000 %}{% for i in range(99999) %}{% set x = ns.s|upper %}{% endfor %}",
    "eqcost": START
    + "{% set a = 'ab' * 400000 %}{% set b = 'ab' * 400000 %}{% for i in range(99999) %}{% if a == b %}{% endif %}{% endfor %}",
    "listcost": START
    + "{% set a = 'ab' * 400000 %}{% for i in range(99999) %}{% set b = a|list %}{% endfor %}",
    "splitcost": START
    + "{% set a = 'ab ' * 300000 %}{% for i in range(99999) %}{% set b = a.split() %}{% endfor %}",
    "rejectcost": START
    + "{% set a = [1] * 300000 %}{% for i in range(99999) %}{% set b = a|reject|list %}{% endfor %}",
    "sortcost": START
    + "{% set a = ['x' * 1000] * 900 %}{% for i in range(99999) %}{% set b = a|sort|list %}{% endfor %}",
    "rfind": "{% set a = 'a' * 900000 %}{{ a.rfind('b' + 'a' * 450000) }}",
    "strip": "{% set a = 'a' * 900000 %}{{ a.strip('bcd' * 300000 + 'a') }}",
    "rsplit": "{% set a = 'a' * 900000 %}{{ a.rsplit('b' + 'a' * 450000) }}",
    "trim": "{% set a = 'a' * 900000 %}{{ a|trim('bcd' * 100000 + 'a') }}",
    "count": "{% set a = 'a' * 900000 %}{% for i in range(99999) %}{{ a.count('a' * 450000 + 'b') }}{% endfor %}",
    "find": "{% set a = ('a' * 1000 + 'b') * 900 %}{% for i in range(99999) %}{{ a.find('a' * 1000 + 'c') }}{% endfor %}",
    "literal": "{% for i in range(99999) %}{% set x = [" + "1," * 20000 + "] %}{% endfor %}",
    "straight": "{% for i in range(99999) %}" + "{{ i }}" * 5000 + "{% endfor %}",
    "star": often("{{ ns.x(*range(99999)) }}"),
    "starmacro": "{% macro m() %}{{ varargs|length }}{% endmacro %}" + often("{{ m(*range(99999)) }}"),
    "dictk": often("{% set d = dict(a=1) %}{% set ns.d = d %}"),
    "nscycle": START + "{% set ns.me = ns %}{{ ns }}",
    "nscycle2": START + "{% set ns.me = [ns] %}{{ ns.me }}",
    "append": "{% for i in range(99999) %}{{ messages.append(1) }}{% endfor %}",
    "pop": "{{ messages.pop() }}",
    "update": "{{ messages[0].update({'a':1}) }}",
    "parens": "{{ " + "(" * 90000 + ")" * 90000 + " }}",
    "nots": "{{ " + "not " * 40000 + "1 }}",
    "lists": "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "ifs": "{% if 1 %}" * 5000 + "{% endif %}" * 5000,
    "fors": "{% for a in [1] %}" * 40 + "{% endfor %}" * 40,
    "plus": "{{ " + "+".join("1" * 3000) + " }}",
    "dots": "{{ a" + ".a" * 50000 + " }}",
    "filters": "{{ a" + "|e" * 50000 + " }}",
    "big": "x" * 10**7,
    "bigint": "{{ " + "9" * 5000 + " }}",
    "bigfloat": "{{ 1e999999999 }}{{ raise_exception('x') }}",
    "elifs": "{% if 1 %}" + "{% elif 2 %}" * 15000 + "{% endif %}{{raise_exception('x')}}",
    "strf": "{{ strftime_now('%1000000000d') }}{{ raise_exception('x') }}",
    "strf2": "{{ strftime_now('%Y' * 100000) }}",
    "strf3": "{{ strftime_now('a\\x00b') }}{{ raise_exception('x') }}",
    "raise": "{{ raise_exception('x' * 900000) }}",
    "raiseesc": "{{ raise_exception('\x1b[31mred') }}",
    "raise2": "{{ raise_exception(namespace()) }}",
    "surr": "{{ '\\ud800' }}{{ raise_exception('\\ud800') }}",
    "autoesc": "{% autoescape true %}{{ '<'*100 }}{% endautoescape %}",
    "undefcall": "{{ a.b.c }}",
    "trunc": "{{ 'abc'|truncate(1) }}",
    "getitemslice": "{{ 'abc'['x':] }}",
    "urlize": "{{ 'x'|urlize }}",
    "recursejson": START
    + "{% for i in range(200) %}{% set ns.l = {'a': ns.l} %}{% endfor %}{{ ns.l|tojson }}",
    "jsongen": "{{ messages|map('x')|tojson }}",
    "bufref": START
    + "{% set ns.s = 'a' * 900000 %}{% set x %}{% for i in range(99999) %}{{ ns.s }}{% endfor %}{% endset %}",
    "outbig": START + "{% set ns.s = 'a' * 90000 %}{% for i in range(99999) %}{{ ns.s }}{% endfor %}",
    "loopwide": "{% for i in range(99999) %}{% set x = loop.length %}{% for j in range(99999) %}{% set x = loop.length %}{% endfor %}{% endfor %}",
    "unpack": "{% set a, b = [1] %}",
    "divzero": "{{ 1 % 0 }}",
    "cmp": "{{ [1] < ['a'] }}",
    "minmixed": "{{ [1,'a']|min }}",
    "deepcall": often("{% set ns.t = (ns.t,) %}") + "{{ ns.t() }}",
    "deepview": often("{% set ns.t = (ns.t,) %}") + "{{ {1: ns.t}.items() - {2: ns.t}.items() }}",
    "deepfilter": often("{% set ns.t = (ns.t,) %}") + "{{ [1]|map(ns.t)|list }}",
    "deeptest": often("{% set ns.t = (ns.t,) %}") + "{{ [1]|select(ns.t)|list }}",
    "deepistest": often("{% set ns.t = (ns.t,) %}") + "{{ ns.t is filter }}{{ ns.t is test }}",
    "deepvarargs": "{% set ns = namespace(t=1) %}{% macro m() %}{% set ns.t = varargs %}{% endmacro %}"
    "{% for i in range(99999) %}{{ m(ns.t) }}{% endfor %}{{ {ns.t: 1} }}",
    "dagattr": often("{% set ns.l = [ns.l, ns.l] %}", 50) + "{{ {}|attr(ns.l) }}",
    "dagundefined": often("{% set ns.l = [ns.l, ns.l] %}", 50) + "{{ messages[ns.l].x }}",
    "dagraisekw": often("{% set ns.l = [ns.l, ns.l] %}", 50) + "{{ raise_exception(message=ns.l) }}",
    "dagmap": often("{% set ns.l = [ns.l, ns.l] %}", 50) + "{{ [1]|map(ns.l)|list }}",
    "deepkeys": often("{% set ns.t = (ns.t,) %}") + "{{ ({1: ns.t}.items() - [ns.t])|length }}",
}


@pytest.fixture
def small_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_limits, "_BASE_WORK", SMALL_WORK)
    monkeypatch.setattr(template_limits, "_BASE_CHARS", SMALL_CHARS)


@pytest.mark.parametrize("name", BOMBS)
def test_a_hostile_template_ends_in_our_error(name: str, small_budget: None) -> None:
    with pytest.raises(TemplateError) as raised:
        ChatTemplate(BOMBS[name]).render(USER)
    assert len(raised.value.message) < 700
    assert raised.value.message.isprintable()


@pytest.mark.parametrize("name", ["nest", "expmacro", "dbl~", "dageq", "splitcost", "bufref"])
def test_with_the_real_budget_too_in_bounded_memory(name: str, tmp_path: Path) -> None:
    program = (
        "import resource, sys\n"
        "from qwen_edge.chat.template import ChatTemplate\n"
        "from qwen_edge.errors import TemplateError\n"
        "from qwen_edge.types import Message\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "try:\n    ChatTemplate(sys.stdin.read()).render([Message('user', 'Hi')])\n"
        "except TemplateError as error:\n    print(error.message)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=BOMBS[name], capture_output=True, text=True, check=True
    )
    assert "cannot render this conversation: it " in done.stdout


def test_the_same_step_ends_it_each_time(small_budget: None) -> None:
    template = ChatTemplate(BOMBS["nest"])
    said = set()
    for _ in range(3):
        with pytest.raises(TemplateError) as raised:
            template.render(USER)
        said.add(raised.value.message)
    assert len(said) == 1
    assert "does not end within" in said.pop()


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__ }}",
        "{{ ''|attr('__class__') }}",
        "{{ messages.append }}",
        "{{ self._TemplateReference__context }}",
        "{{ cycler.__init__ }}",
        "{{ range.__class__ }}",
        "{{ ['']|map(attribute='__class__')|join }}",
    ],
)
def test_an_attribute_that_is_not_listed_is_undefined(source: str) -> None:
    assert ChatTemplate(source).render(USER) == ""


def test_the_budget_grows_with_the_conversation() -> None:
    source = "{% for m in messages %}{% for n in messages %}{{ n.content[:1] }}{% endfor %}{% endfor %}"
    messages = [Message("user", "word " * 20)] * 500
    assert len(ChatTemplate(source).render(messages)) == 500 * 500
    long = Message("user", "x" * 3_000_000)
    assert len(ChatTemplate("{{ messages[0].content * 2 }}").render([long])) == 6_000_000


def test_a_conversation_that_holds_itself_is_measured() -> None:
    schema: dict[str, object] = {"type": "object"}
    schema["self"] = schema
    assert ChatTemplate("{{ tools[0].type }}").render(USER, tools=[schema]) == "object"
    with pytest.raises(TemplateError, match="deep"):
        ChatTemplate("{{ tools|tojson }}").render(USER, tools=[schema])


def test_threads_share_a_template() -> None:
    template = ChatTemplate(
        "{% for m in messages %}{% for i in range(2000) %}{{ i }}{% endfor %}{% endfor %}"
    )
    expected = template.render(USER)
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(template.render(USER))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


def test_what_templates_use_renders_as_in_jinja() -> None:
    source = """{% macro tag(name, text='') %}<{{ name }}>{{ text|trim }}{{ caller() if caller }}</{{ name }}>{% endmacro %}
{%- set ns = namespace(out='', found=false) %}
{%- for m in messages if m.role != 'system' %}
{%- set ns.out = ns.out ~ loop.index ~ '/' ~ loop.length ~ m.content.split('-')[-1].upper() %}
{%- generation %}{{ '%s=%d'|format(m.role, loop.index0) }};{% endgeneration %}
{%- endfor %}{{ ns.out }} {{ tag('b', ' x ') }}{% call tag('c') %}in{% endcall %}
{{- messages[::-1]|map(attribute='role')|list|join(',') }} {{ {'a': [1, none]}|tojson }} {{ 'é'|tojson(ensure_ascii=true) }}
{{- [3, 1, 2]|sort|join }} {{ '{}-{:>3}'.format('a', 1) }} {{ '%05.1f' % 2.25 }} {{ 2 ** 10 }} {{ 'a\nb'|indent(2) }}
{{- 'x' in messages[0] }} {{ messages|selectattr('role', 'equalto', 'user')|list|length }}"""
    rendered = ChatTemplate(source).render(
        [Message("system", "s"), Message("user", "a-b"), Message("assistant", "c")]
    )
    assert rendered == (
        'user=0;assistant=1;1/2B2/2C <b>x</b><c>in</c>assistant,user,system {"a": [1, null]} "\\u00e9"'
        "123 a-  1 002.2 1024 a\n  bFalse 1"
    )


def test_a_model_with_such_a_template_names_the_file_and_can_be_loaded_with_chatml() -> None:
    engine = FakeEngine([], chat_template="{% include 'x' %}")
    closed = []
    engine.close = lambda: closed.append(True)  # type: ignore[method-assign]
    with pytest.raises(TemplateError, match="no other files") as raised:
        Model(engine)
    assert closed
    assert 'chat_template="chatml"' in str(raised.value)
    with pytest.raises(TemplateError, match=r"of model.gguf does not compile"):
        ChatTemplate("{% if %}", path=Path("model.gguf"))
    model = Model(
        FakeEngine([], chat_template="{% include 'x' %}"), LoadConfig(chat_template="chatml").chat_template
    )
    assert model.template.render(USER).startswith("<|im_start|>user\nHi")
    own = Model(FakeEngine([]), "{{ messages[0].content }}!")
    assert own.template.render(USER) == "Hi!"


atoms = st.sampled_from(
    ["1", "-1", "99999", "10**9", "2.5", "''", "'a'", "'%s{}'", "none", "true", "[]", "[1, 'b']", "(1,)", "{'k': 'v'}", "messages",
     "messages[0]", "messages[0].content", "x", "y", "loop", "m", "ns", "ns.a", "range(9)", "cycler('a')", "undefined_name",
     "self", "caller", "varargs", "dict(a=1)", "joiner()", "namespace()", "strftime_now('%Y')", "tools"]
)  # fmt: skip
ENVIRONMENT = ChatTemplate("")._environment
filters = st.sampled_from(
    [name for name in ENVIRONMENT.filters if name.isidentifier()] + ["urlize", "nothing"]
)
attributes = st.sampled_from(
    ["__class__", "__mro__", "_a", "format", "join", "items", "get", "keys", "split", "rsplit", "strip", "upper", "ljust", "index",
     "length", "append", "replace", "expandtabs", "next", "name", "role", "changed", "cycle", "is_integer", "splitlines"]
)  # fmt: skip
tests = st.sampled_from(sorted(name for name in ENVIRONMENT.tests if name.isalpha()))
operators = st.sampled_from(
    ["+", "-", "*", "/", "//", "%", "**", "~", "==", "<", "in", "not in", "and", "or"]
)


def grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    arguments = st.lists(inner, max_size=3).map(", ".join)
    return st.one_of(
        st.builds("({} {} {})".format, inner, operators, inner),
        st.builds("{}|{}".format, inner, filters),
        st.builds("{}|{}({})".format, inner, filters, arguments),
        st.builds("{}.{}".format, inner, attributes),
        st.builds("{}.{}({})".format, inner, attributes, arguments),
        st.builds("{}({})".format, inner, arguments),
        st.builds("{}[{}]".format, inner, inner),
        st.builds("{}[{}:{}]".format, inner, inner, inner),
        st.builds("({} is {})".format, inner, tests),
        st.builds("({} is {} {})".format, inner, tests, inner),
        st.builds("({} if {} else {})".format, inner, inner, inner),
        st.builds("[{}, {}]".format, inner, inner),
        st.builds("{{{}: {}}}".format, inner, inner),
    )


expressions = st.recursive(atoms, grown, max_leaves=6)


def blocks(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    body = st.lists(inner, max_size=3).map("".join)
    return st.one_of(
        st.builds("{{% for x in {} %}}{}{{% endfor %}}".format, expressions, body),
        st.builds(
            "{{% for x in {} if {} %}}{}{{% else %}}-{{% endfor %}}".format, expressions, expressions, body
        ),
        st.builds("{{% if {} %}}{}{{% endif %}}".format, expressions, body),
        st.builds("{{% macro m(x, y={}) %}}{}{{% endmacro %}}".format, expressions, body),
        st.builds("{{% call {} %}}{}{{% endcall %}}".format, expressions, body),
        st.builds("{{% set x %}}{}{{% endset %}}".format, body),
        st.builds("{{% filter {} %}}{}{{% endfilter %}}".format, filters, body),
        st.builds("{{% with y = {} %}}{}{{% endwith %}}".format, expressions, body),
    )


statements = st.recursive(
    st.one_of(
        st.builds("{{{{ {} }}}}".format, expressions),
        st.builds("{{% set x = {} %}}".format, expressions),
        st.builds("{{% set ns.a = {} %}}".format, expressions),
    ),
    blocks,
    max_leaves=8,
)

patiently = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)


def render_or_refuse(source: str) -> None:
    try:
        rendered = ChatTemplate(source).render(USER)
    except TemplateError:
        return
    assert len(rendered) <= 2 * SMALL_CHARS


@patiently
@given(parts=st.lists(statements, min_size=1, max_size=5))
def test_any_template_renders_or_ends_in_our_error(small_budget: None, parts: list[str]) -> None:
    render_or_refuse("{% set ns = namespace() %}{% macro m(y) %}{{ y }}{% endmacro %}" + "".join(parts))


@patiently
@given(parts=st.lists(st.sampled_from(["{{", "}}", "{%", "%}", "{#", "#}", "-", "for", "in", "if", "endif", "x", "raw", "endraw", "macro",
    "(", ")", "[", "'", '"', "|", ".", "~", "9", "1e999", "\\ud800", "\x00", " ", "\n", "set", "endset", "generation", "break", "continue"]), max_size=30))  # fmt: skip
def test_any_text_renders_or_ends_in_our_error(small_budget: None, parts: list[str]) -> None:
    render_or_refuse(" ".join(parts))
    render_or_refuse("".join(parts))


@patiently
@given(source=st.text(max_size=200))
def test_any_unicode_renders_or_ends_in_our_error(small_budget: None, source: str) -> None:
    render_or_refuse(source)
    render_or_refuse("{{ " + source + " }}")
