#!/usr/bin/env python3
"""Renders templates with Hugging Face transformers' own set-up of Jinja2 and stores the results.

    /path/to/venv/bin/python tests/golden/chat_template/make.py

Writes language.json (small templates, one feature each) and families.json (message lists in
the prompt formats of the built-in families, written here by plain string operations) beside
this file. Recorded with transformers 5.23 and jinja2 3.1.6. The templates are our own.
"""
import datetime
import json
import os

from transformers.utils import chat_template_utils

HERE = os.path.dirname(os.path.abspath(__file__))
NOW = datetime.datetime(2024, 7, 26, 12, 0, 0)


class FixedClock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


chat_template_utils.datetime = FixedClock

TOOLS = [{"type": "function", "function": {"name": "pass_baton", "description": "Hand it on <now> & \"then\"",
          "parameters": {"type": "object", "properties": {"to": {"type": "string", "enum": ["Mia", "Öl"]}, "n": {"type": "integer"}}, "required": ["to"]}}}]
CALL = {"type": "function", "function": {"name": "pass_baton", "arguments": {"to": "Mia", "n": 2}}}
CHATS = {
    "one": [{"role": "user", "content": "Hello!"}],
    "system": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "  Hi there \n"}],
    "turns": [{"role": "user", "content": "Who runs first?"}, {"role": "assistant", "content": " Mia does. "}, {"role": "user", "content": "And last?"}],
    "system turns": [{"role": "system", "content": " Coach. "}, {"role": "user", "content": "A"}, {"role": "assistant", "content": "B"},
                     {"role": "user", "content": "C"}, {"role": "assistant", "content": "D"}],
    "letters": [{"role": "user", "content": "größe 猫 \U0001f3c3 <b>&amp;</b> 'q' \"d\" {{ x }} {% y %}\tend"}],
    "empty": [{"role": "user", "content": ""}],
    "two users": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
    "tool": [{"role": "user", "content": "Go"}, {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]}, {"role": "tool", "content": "done"},
             {"role": "tool", "content": "again"}, {"role": "assistant", "content": "Ready."}, {"role": "system", "content": "late"}],
    "none": [],
}
DATA = {
    "s": "Relay Race", "e": "", "n": 7, "z": 0, "f": 2.5, "t": True, "x": None, "l": [3, 1, 2], "w": ["b", "A", "c", "a"], "d": {"b": 1, "a": [1, {"k": "v"}], "items": 5},
    "m": [{"n": "Mia", "a": 9, "t": {"r": 1}}, {"n": "Ben", "a": 7, "t": {"r": 2}}, {"n": "eva", "a": 9}], "u": "größe ßtraße ΑΣ ΣΑΣ. ǆ ﬁ İ", "q": "it's \"x\"\n\\ \u200b é",
    "messages": CHATS["system turns"], "tools": TOOLS, "lines": "a\n  b\n\nc", "big": 12345678901, "fl": [1.0, 0.1, 1e16, 1e-5, 123456.789, -0.0, 1e22],
}

LANGUAGE = r"""
plain text
{{ s }}|{{ n }}|{{ f }}|{{ t }}|{{ x }}|{{ undefined_thing }}|
{{ l }} {{ d }} {{ w }} {{ (1,) }} {{ (1, 'a') }} {{ () }} {{ fl }}
{{ q }} {{ [q] }} {{ ["'"] }} {{ ['"'] }} {{ ["'\""] }} {{ u }} {{ [u] }}
{{ 1 + 2 * 3 - 4 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 6 / 2 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ 2 ** 3 ** 2 }} {{ -2 ** 2 }}
{{ 7.5 // 2 }} {{ -7.5 % 2 }} {{ 1e3 }} {{ 1.5e-7 }} {{ 0x1f }} {{ 0b101 }} {{ 1_000 }} {{ 10 // 3.0 }}
{{ 'a' + 'b' }} {{ 'a' * 3 }} {{ [1] + [2] }} {{ [0] * 3 }} {{ (1,) + (2,) }} {{ 'a' ~ 1 ~ none ~ [1] }} {{ 1 ~ 2 }}
{{ 1 == 1.0 }} {{ 1 == true }} {{ '1' == 1 }} {{ [1, 2] == [1, 2] }} {{ {'a': 1} == {'a': 1.0} }} {{ (1, 2) == [1, 2] }} {{ none == none }} {{ a == b }}
{{ 1 < 2 < 3 }} {{ 3 > 2 >= 2 }} {{ 'a' < 'b' }} {{ [1, 2] < [1, 3] }} {{ 1 != 2 }} {{ 'A' < 'a' }} {{ 1 < 2 > 3 }}
{{ 'a' in 'cat' }} {{ 'x' not in 'cat' }} {{ 1 in l }} {{ 'b' in d }} {{ 'zz' in d }} {{ not 1 in l }} {{ '' in 'x' }} {{ 2 in (1, 2) }} {{ s in nothing }}
{{ t and n }} {{ z or 'd' }} {{ not e }} {{ e and s }} {{ x or e or z }} {{ not not n }} {{ 1 and 2 or 3 }} {{ (not t) == false }}
{{ 'a' if t else 'b' }} {{ 'a' if z }} {{ 'a' if z else 'b' if e else 'c' }} {{ (1 if t) + 1 }}
{{ s[0] }}{{ s[-1] }} {{ s[1:4] }} {{ s[::-1] }} {{ s[:-2] }} {{ s[::2] }} {{ l[0] }} {{ l[1:] }} {{ l[::-1] }} {{ l[5:] }} {{ l[-2:] }} {{ l[10] }} {{ u[1:4] }} {{ u[-3:] }} {{ l[2:0:-1] }} {{ l[:0:-1] }}
{{ d.b }} {{ d['b'] }} {{ d.a[1].k }} {{ d.missing }} {{ d['missing'] }} {{ d['items'] }} {{ m[0].t.r }} {{ m.0.n }} {{ d.get('b') }} {{ d.get('q') }} {{ d.get('q', 'w') }}
{{ d.items is defined }} {{ d.items() | list }} {{ d.keys() | list }} {{ d.values() | list }} {{ d.items() }} {{ d.keys() }}
{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{% for k in d %}{{ k }}{% endfor %}{% for k, v in d | items %}{{ loop.index }}{{ k }}{% endfor %}{% for k, v in d | dictsort %}{{ k }}{% endfor %}
{% for i in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.previtem }}{{ loop.nextitem }}{{ loop.depth }},{% endfor %}
{% for i in [] %}x{% else %}none{% endfor %}{% for i in nothing %}x{% else %}none{% endfor %}{% for i in l if i > 1 %}{{ loop.index }}{{ i }}{% else %}no{% endfor %}{% for i in l if i > 9 %}x{% else %}no{% endfor %}
{% for i in range(3) %}{{ i }}{% endfor %}{% for i in range(5, 1, -2) %}{{ i }}{% endfor %}{{ range(3) }}{{ range(1, 9, 2) | list }}{{ range(4)[1:] | list }}{{ range(3) | length }}
{% for i in l %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}{% for i in l %}{% if i == 1 %}{% break %}{% endif %}{{ i }}{% endfor %}{% for a in l %}{% for b in l %}{% if b == 1 %}{% break %}{% endif %}{{ a }}{{ b }}{% endfor %}.{% endfor %}
{% for c in 'héy' %}{{ c }}.{% endfor %}{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}{% for i in 'ab' %}{% for j in 'cd' %}{{ loop.index }}{{ i }}{{ j }}{% endfor %}{{ loop.index }}{% endfor %}
{% set y = 1 %}{% for i in l %}{% set y = y + i %}{{ y }}{% endfor %}{{ y }}{% if t %}{% set y = 5 %}{% endif %}{{ y }}{% if z %}{% set q2 = 5 %}{% endif %}{{ q2 is defined }}
{% set ns = namespace(c=0, l=[]) %}{% for i in l %}{% set ns.c = ns.c + i %}{% set ns.l = ns.l + [i] %}{% endfor %}{{ ns.c }}{{ ns.l }}{{ ns.nope is defined }}{% set ns2 = namespace({'a': 1}, b=2) %}{{ ns2.a }}{{ ns2.b }}
{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set a, b = b, a %}{{ a }}{{ b }}{% set p = 1, 2 %}{{ p }}{% set (c, e2), g = (1, 2), 3 %}{{ c }}{{ e2 }}{{ g }}
{% set y %}hello {{ s }}{% endset %}[{{ y }}]{% set y | upper | trim %}  hello {% endset %}[{{ y }}]
{% macro f(a, b=2, c='x') %}({{ a }},{{ b }},{{ c }}){% endmacro %}{{ f(1) }}{{ f(1, 3) }}{{ f(1, c=4) }}{{ f(b=1, a=2) }}{{ f() }}{{ f(*[7, 8]) }}{{ f(**{'a': 1, 'c': 2}) }}
{% macro g(n) %}{{ n }}{% if n > 0 %}{{ g(n - 1) }}{% endif %}{% endmacro %}{{ g(3) }}{% macro h() %}{{ later }}{% endmacro %}{% set later = 4 %}{{ h() }}
{% macro box(t) %}<{{ t }}:{{ caller() }}>{% endmacro %}{% call box('a') %}in {{ s }}{% endcall %}{% macro each(l) %}{% for i in l %}{{ caller(i) }}{% endfor %}{% endmacro %}{% call(i) each(l) %}[{{ i }}]{% endcall %}
{% filter upper %}abc {{ s }}{% endfilter %}{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{{ a is defined }}{% with %}{% set k = 3 %}{{ k }}{% endwith %}{{ k is defined }}
{% generation %}{{ s }}{% set k = 1 %}{% endgeneration %}{{ k is defined }}{% for m2 in messages %}{% generation %}{{ m2.content }}{% endgeneration %}{% endfor %}
{% raw %}{{ not }} {% this %}{% endraw %}{# a comment {{ x }} #}after{#- c -#}  x
{{ s | upper }}{{ s | lower }}{{ s | title }}{{ 'hello wORLD-foo (bar' | title }}{{ 'hELLO' | capitalize }}{{ '  x ' | trim }}{{ 'xxaxx' | trim('x') }}{{ s | length }}{{ l | length }}{{ d | length }}{{ s | replace('R', 'r') }}{{ 'aaa' | replace('a', 'b', 2) }}
{{ u | upper }}|{{ u | lower }}|{{ u | title }}|{{ u | capitalize }}|{{ u.title() }}|{{ u.upper() }}|{{ u.lower() }}|{{ 'they\'re ok' | title }}|{{ "they're x3y ok".title() }}|{{ u | length }}
{{ l | join }}{{ l | join(', ') }}{{ m | join('-', attribute='n') }}{{ [1, none, true] | join('|') }}{{ 'abc' | join('.') }}{{ d | join(',') }}
{{ nope | default('d') }}{{ e | default('d') }}{{ e | default('d', true) }}{{ x | d('y') }}{{ x | default('y', boolean=true) }}{{ nope | default }}{{ nope.a | default('q') if nope else 'r' }}
{{ l | first }}{{ l | last }}{{ s | first }}{{ s | last }}{{ [] | first }}{{ [] | last is defined }}{{ d | first }}{{ l | sum }}{{ m | sum(attribute='a') }}{{ l | min }}{{ l | max }}{{ w | max }}{{ w | min(case_sensitive=true) }}
{{ l | sort }}{{ w | sort }}{{ w | sort(reverse=true) }}{{ w | sort(case_sensitive=true) }}{{ m | sort(attribute='n') | map(attribute='n') | list }}{{ m | sort(attribute='a,n') | map(attribute='n') | join }}{{ m | sort(attribute='a', reverse=true) | map(attribute='n') | join }}
{{ l | reverse | list }}{{ s | reverse }}{{ w | unique | list }}{{ [1, 1.0, true, 2] | unique | list }}{{ l | list }}{{ 'ab' | list }}{{ d | list }}{{ 5 | string + '1' }}{{ [1] | string }}
{{ '42' | int }}{{ '4.7' | int }}{{ 'x' | int }}{{ 'x' | int(9) }}{{ 4.9 | int }}{{ -4.9 | int }}{{ '0x1f' | int(0, 16) }}{{ ' 7 ' | int }}{{ '1_0' | int }}{{ none | int(3) }}{{ true | int }}{{ '1e3' | int }}{{ 'ff' | int(base=16) }}
{{ '4.5' | float }}{{ 'x' | float }}{{ 3 | float }}{{ 'inf' | float }}{{ '1e400' | float }}{{ 'x' | float(1.5) }}{{ -3 | abs }}{{ (-3) | abs }}{{ -2.5 | abs }}
{{ 2.5 | round }}{{ 3.5 | round }}{{ 2.567 | round(2) }}{{ 2.1 | round(method='ceil') }}{{ 2.9 | round(0, 'floor') }}{{ 7 | round }}{{ 2.675 | round(2) }}{{ 1234 | round(-2) }}{{ 1250 | round(-2) }}{{ 0.5 | round }}{{ 1234.5 | round(-2) }}
{{ l | select('odd') | list }}{{ l | reject('odd') | list }}{{ l | select('gt', 1) | list }}{{ [0, 1, '', 'a'] | select | list }}{{ m | selectattr('a', 'equalto', 9) | map(attribute='n') | list }}{{ m | rejectattr('a', 'eq', 9) | map(attribute='n') | list }}{{ m | selectattr('t') | list | length }}{{ m | selectattr('t', 'defined') | list | length }}{{ m | selectattr('t.r', 'defined') | map(attribute='n') | list if false else 1 }}
{{ w | map('upper') | list }}{{ m | map(attribute='n') | join(',') }}{{ m | map(attribute='zz', default='?') | list }}{{ l | map('string') | map('replace', '1', 'one') | list }}{{ [[1, 2], [3]] | map('join', '+') | list }}{{ [[3, 4]] | map(attribute=1) | list }}{{ m | map(attribute='t.r', default=0) | list if false else '' }}
{{ lines | indent }}|{{ lines | indent(2, true) }}|{{ lines | indent(2, blank=true) }}|{{ lines | indent('> ', first=true) }}|{{ 'x' | indent(3) }}|{{ 'a\n' | indent(1) }}|
{{ d | tojson }}{{ tools | tojson }}{{ q | tojson }}{{ u | tojson }}{{ fl | tojson }}{{ none | tojson }}{{ true | tojson }}{{ (1, 2) | tojson }}{{ '</script>&' | tojson }}{{ {1: 2, none: 3, true: 4, 1.5: 5} | tojson }}
{{ d | tojson(indent=2) }}{{ tools | tojson(indent=4) }}{{ [[], {}] | tojson(indent=1) }}{{ u | tojson(ensure_ascii=true) }}{{ d | tojson(sort_keys=true) }}{{ d | tojson(separators=(',', ':')) }}{{ l | tojson(indent=0) }}{{ [1] | tojson(indent='\t') }}{{ '\x7f\x01\b\f' | tojson }}{{ '\x7f\U0001f3c3' | tojson(true) }}
{{ 'a,b,,c'.split(',') }}{{ ' a  b '.split() }}{{ 'a,b,c'.split(',', 1) }}{{ 'a b c'.rsplit(' ', 1) }}{{ ' a b  c '.rsplit(none, 1) }}{{ 'a b  c '.split(none, 1) }}{{ 'a\nb\r\nc'.splitlines() }}{{ 'a\nb'.splitlines(true) }}{{ ''.split() }}{{ ''.split(',') }}{{ 'aXbX'.split('X') }}{{ 'x--y'.split('--')[-1] }}
{{ '  a '.strip() }}|{{ '  a '.lstrip() }}|{{ '  a '.rstrip() }}|{{ 'xaxy'.strip('xy') }}|{{ '\n\na\n'.strip('\n') }}|{{ '\u3000a\u00a0'.strip() }}|{{ 'é a é'.strip('é ') }}|
{{ s.startswith('Re') }}{{ s.endswith('ce') }}{{ s.startswith(('x', 'Re')) }}{{ s.startswith('lay', 2) }}{{ s.endswith('lay', 0, 5) }}{{ s.find('a') }}{{ s.rfind('a') }}{{ s.find('zz') }}{{ s.count('a') }}{{ s.index('R') }}{{ s.upper() }}{{ s.lower() }}{{ s.replace('e', '3') }}{{ s.replace('', '-') }}{{ 'ab'.replace('', '-', 1) }}{{ u.find('ß') }}{{ u.rfind('ß') }}{{ 'aaa'.count('') }}{{ 'abc'.find('') }}{{ 'abc'.rfind('') }}{{ 'abc'.find('c', -1) }}
{{ ', '.join(['a', 'b']) }}{{ ''.join(w) }}{{ 'a-b-c'.partition('-') }}{{ 'a-b-c'.rpartition('-') }}{{ 'abc'.partition('x') }}{{ 'abc'.rpartition('x') }}{{ '7'.zfill(3) }}{{ '-7'.zfill(4) }}{{ 'a'.ljust(3) }}|{{ 'a'.rjust(3, '.') }}|{{ 'ab'.center(5, '*') }}{{ 'ab'.center(6, '*') }}{{ 'abc'.center(6, '*') }}{{ 'x' | center(5) }}|{{ 'prefix-a'.removeprefix('prefix-') }}{{ 'a.py'.removesuffix('.py') }}
{{ 'abc'.isalpha() }}{{ '12'.isdigit() }}{{ 'a1'.isalnum() }}{{ ' '.isspace() }}{{ 'AB'.isupper() }}{{ 'ab1'.islower() }}{{ ''.isdigit() }}{{ 'é'.isalpha() }}{{ 'A1'.isupper() }}{{ '1'.isupper() }}
{{ l.index(1) }}{{ l.count(3) }}{{ (1, 2).index(2) }}{{ d.copy() }}{{ dict(a=1, b=2) }}{{ dict([('a', 1)], c=3) }}{{ dict({'z': 1}) }}
{{ s is defined }}{{ nope is defined }}{{ nope is undefined }}{{ x is none }}{{ s is string }}{{ d is mapping }}{{ l is iterable }}{{ l is sequence }}{{ d is sequence }}{{ s is sequence }}{{ 5 is number }}{{ t is number }}{{ t is boolean }}{{ t is true }}{{ 1 is true }}{{ false is false }}{{ 3 is odd }}{{ 4 is even }}{{ 9 is divisibleby 3 }}{{ 5 is integer }}{{ 5.0 is float }}{{ t is integer }}
{{ x is not none }}{{ s is not string }}{{ 'a' is in 'abc' }}{{ 3 is in l }}{{ 3 is eq 3 }}{{ 3 is gt(2) }}{{ 3 is lessthan 4 }}{{ 'ab' is lower }}{{ 'AB' is upper }}{{ range is callable }}{{ none is sameas none }}{{ 5 is sameas 5 }}{{ 'upper' is filter }}{{ 'odd' is test }}{{ nope is iterable }}{{ nope is sequence }}{{ 5 is iterable }}{{ d.keys() is sequence }}{{ l | map('string') is sequence }}
{{ 'a' if not s is string else 'b' }}{{ s is string and t }}{{ not s is none }}{{ 1 + 1 is number }}{{ -1 is number }}{{ s | upper is upper }}{{ (x is none) | string }}
{{ "a" 'b' "c" }}{{ 'tab\tnl\\n\'q\' \x41 \u00e9 \U0001f3c3 \101 \q' }}
{% if n > 5 %}big{% elif n > 3 %}mid{% else %}small{% endif %}{% if z %}a{% elif e %}b{% elif t %}c{% endif %}{% if z %}a{% endif %}
{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set sys = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% endif %}{% for m2 in loop_messages %}{% if loop.index0 == 0 %}{{ sys | trim }}{% endif %}{{ m2['role'] + ': ' + m2.content }};{% endfor %}
{% for m2 in messages[::-1] %}{{ (messages | length - 1) - loop.index0 }}{{ m2.role[0] }}{% endfor %}{{ messages[-1].role }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ (messages | last).content }}
{{ strftime_now('%d %b %Y') }}{{ strftime_now('%Y-%m-%d %H:%M') }}{{ strftime_now('%A, %B %-d') }}
{{ raise_exception('Conversation roles must alternate!') }}
{% if s %}{{ raise_exception("No " ~ s ~ [1]) }}{% endif %}
{{ 'a' + 1 }}
{{ 1 + 'a' }}
{{ none + 'a' }}
{{ nope + 'a' }}
{{ nope.a.b }}
{{ nope['a'] }}
{{ d.missing.deeper }}
{{ nope() }}
{{ 'a'() }}
{{ 1 // 0 }}
{{ 1 < 'a' }}
{{ none > 1 }}
{{ [3, 'a'] | sort }}
{{ 'abc'.index('z') }}
{{ 'a'.split('') }}
{{ l.append(4) }}
{{ d.update({'a': 1}) }}
{{ d.pop('a') }}
{% set d.q = 1 %}
{% for i in 5 %}{% endfor %}
{% set a, b = 1, 2, 3 %}
{% set a, b = [1] %}
{{ {[1]: 2} }}
{{ f(1) }}{% macro f() %}{% endmacro %}
{% macro f() %}{% endmacro %}{{ f(1) }}
{% macro f() %}{% endmacro %}{{ f(a=1) }}
{{ l | length(1) }}
{{ none | length }}
{{ none | items | list }}
{{ nope | items | list }}
{{ nope | tojson }}
{{ nope | int }}
{{ range(1, 10, 0) }}
{{ range(1000000) }}
{{ range('a') }}
{{ s.nothing() }}
{{ ''.__class__ }}x
{{ ''.__class__.__mro__ }}
{% set ns = namespace() %}{% set ns._x = 1 %}
{% for i in l recursive %}{{ i }}{% if i == 3 and not loop.depth0 %}{{ loop([7, 8]) }}{% endif %}{% endfor %}
{% for i in l %}{{ loop.cycle('a', 'b') }}{{ loop.changed(i > 1) }}{% endfor %}{% for i in l %}{% set outer = loop %}{% for j in l %}{{ outer.index }}{{ loop.index }}{% endfor %} {% endfor %}
{{ ('<b>' | safe) + '<i>' }}{{ '<b>' | safe ~ '<' }}{{ '<&>"' | escape }}{{ '<' | e | e }}{{ '<' | e | forceescape }}{{ '<b>' | safe | length }}{{ '<b>' | safe | upper }}
{% set gen = l | select('odd') %}{{ gen | list }}{{ gen | list }}{{ 'true' if [] | select else 'false' }}{{ l | map('string') | first }}{{ (l | map('string') | list)[1] }}
{{ d | attr('keys') is defined }}{{ d | attr('b') is defined }}{{ w | join(sep) if false else '' }}{{ [1, 2, 3][1:] | first }}{{ {'a': 1}['a'] }}{{ {'a': {'b': 2}}.a.b }}{{ [1, 2,] }}{{ {'a': 1,} }}
{% set x2 = {'role': 'user', 'content': [{'type': 'text', 'text': 'hi'}, {'type': 'image'}]} %}{% for c in x2.content %}{% if c.type == 'text' %}{{ c.text }}{% else %}<{{ c['type'] }}>{% endif %}{% endfor %}{{ x2.content is string }}{{ x2.content is iterable and x2.content is not string }}
{{- bos_token }}{{ eos_token -}}  tail
{% set result = '' %}{% for i in range(50) %}{% set result = result ~ i %}{% endfor %}[{{ result }}]{% set ns = namespace(r='') %}{% for i in range(50) %}{% set ns.r = ns.r + 'xyzzy-' + (i | string) %}{% set keep = ns.r + '!' %}{% endfor %}{{ ns.r }}
{{ l | tojson | length }}{{ {'a': none} | tojson }}{{ s | string | tojson }}{{ messages | tojson }}{{ messages | map(attribute='role') | list | tojson }}
{{ 9223372036854775807 }}{{ big * 2 }}{{ 10 ** 15 }}{{ 1e15 }}{{ 123456789.0 * 10 }}{{ 0.1 + 0.2 }}{{ 1 / 3 }}{{ 100.0 }}{{ 5e-324 }}{{ 1.7976931348623157e308 }}
{% print s %}{% print 1, 2 %}{% for i in l: %}{{ i }}{% endfor %}{% if t: %}y{% endif %}
{{ "a" if t and not z or e else "b" }}{{ [i for i in l] }}
{% endfor %}
{% if t %}
{{ s
{{ 'a }}
{# never closed
{% unknown_tag %}
{{ s | unknown_filter }}
{{ s is unknown_test }}
{% for x in l %}{% endif %}
{{ (1, }}
{{ ) }}
{% set = 1 %}
{% set 5 = 1 %}
{% break %}
{{ a b }}
{{ s | }}
{{ s is }}
{% macro f(a=1, b) %}{% endmacro %}
"""


# White space control and whatever else needs more than one line.
LAYOUT = [
    "{{ 'line1\nline2' }}",
    "a {%- if t -%}  yes  {%- endif -%}   end",
    "  {% if t %}\n    kept\n  {% endif %}\n  {%- if t %}\n a\n  {%+ if t %}b{% endif +%}\n  c\n{{- ' x' }}   {{ 'y' -}}   z",
    "x\n  {# gone #}\n  {#- gone -#}\n q\n  {#+ kept +#}\n r",
    "line {% if t %}mid{% endif %} tail\n\t{% if t %}tabbed{% endif %}\t\n",
    "\n\n{% if t %}\n\n  a\n\n{% endif %}\n\n\n",
    "   {{ s }}\n   {{- s }}\n   {{ s -}}\n   x",
    "{% for i in l %}\n  {{ i }}\n{% endfor %}\nend",
    "{% for i in l -%}\n  {{ i }}\n{%- endfor %}\nend",
    "{%- for i in l -%}\n  {{- i -}}\n{%- endfor -%}\n end",
    "a\n  {% raw %}\n  {{ x }}\n  {% endraw %}\nb {%- raw -%}  {% y %}  {%- endraw -%}  c",
    "{{\n  s\n  |\n  upper\n}}\n{%\n  if t\n%}\nyes\n{%\n  endif\n%}\n",
    "{% set a = [\n  1,\n  2,\n] %}{{ a }}\n\u00a0{% if t %}nbsp{% endif %}\n\u3000{%- if t %}wide{% endif %}",
    "{{ '}}' }}{{ '%}' }}{{ {'a': {'b': 1}} }}{{ {'a': {'b': 1}}['a']['b'] }}{% if '%}' %}x{% endif %}",
    "{ {a} }} %} #} {{ '{{' }} {",
    "{%-if t-%}tight{%-endif-%}{{-s-}}{{s}}{%if n==7%}seven{%endif%}",
    "\n  {% macro f(x) %}\n    <{{ x }}>\n  {% endmacro %}\n{{ f(1) }}|\n",
    "{% if t %}\r\n  a\r\n{% endif %}\r\nb\rc\r\n",
]


def split_cases(text):
    return text.strip("\n").split("\n") + LAYOUT


def render(template, variables):
    try:
        compiled = chat_template_utils._compile_jinja_template(template)
        return {"rendered": compiled.render(**variables)}
    except Exception as error:  # whatever Python raises is the expected outcome
        text = str(error)
        raised = type(error).__name__ == "TemplateError"
        return {"raised" if raised else "error": text}


def language():
    variables = dict(DATA, tools=TOOLS, documents=None, add_generation_prompt=True, bos_token="<s>", eos_token="</s>")
    cases = [dict(template=t, **render(t, variables)) for t in split_cases(LANGUAGE)]
    for newline in ("\r\n", "\r"):
        t = newline.join(["a", "{% if t %}", "  b", "{% endif %}", "c", ""])
        cases.append(dict(template=t, **render(t, variables)))
    return {"now": "2024-07-26 12:00", "variables": variables, "cases": cases}


# ---- the formats of the families, by plain string operations ------------------------------

def f_chatml(chat, prompt, tools):
    return "".join("<|im_start|>%s\n%s<|im_end|>\n" % (m["role"], m["content"]) for m in chat) + ("<|im_start|>assistant\n" if prompt else "")


def f_llama3(chat, prompt, tools):
    head = "<|start_header_id|>%s<|end_header_id|>\n\n"
    return "<s>" + "".join(head % m["role"] + m["content"].strip() + "<|eot_id|>" for m in chat) + (head % "assistant" if prompt else "")


def alternate(chat):
    for i, m in enumerate(chat):
        if (m["role"] == "user") != (i % 2 == 0):
            raise ValueError("Conversation roles must alternate user/assistant/user/assistant/...")


def f_llama2(chat, prompt, tools):
    preface, out = "", ""
    if chat and chat[0]["role"] == "system":
        preface, chat = "<<SYS>>\n%s\n<</SYS>>\n\n" % chat[0]["content"], chat[1:]
    alternate(chat)
    for i, m in enumerate(chat):
        text = (preface + m["content"] if i == 0 else m["content"]).strip()
        out += "<s>[INST] %s [/INST]" % text if m["role"] == "user" else " %s </s>" % text if m["role"] == "assistant" else ""
    return out


def f_mistral(chat, prompt, tools):
    alternate(chat)
    if any(m["role"] not in ("user", "assistant") for m in chat):
        raise ValueError("Only user and assistant roles are supported!")
    return "<s>" + "".join("[INST] %s [/INST]" % m["content"] if m["role"] == "user" else m["content"] + "</s>" for m in chat)


def f_zephyr(chat, prompt, tools):
    out = "".join("<|%s|>\n%s</s>\n" % (m["role"], m["content"]) for m in chat if m["role"] in ("system", "user", "assistant"))
    return out + ("<|assistant|>\n" if prompt and chat else "")


def f_qwen(chat, prompt, tools):
    system = chat[0]["content"] if chat and chat[0]["role"] == "system" else "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    if tools:
        system += ("\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with function signatures within "
                   "<tools></tools> XML tags:\n<tools>" + "".join("\n" + json.dumps(t, ensure_ascii=False) for t in tools) +
                   "\n</tools>\n\nFor each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:\n"
                   "<tool_call>\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call>")
    out = "<|im_start|>system\n" + system + "<|im_end|>\n"
    for i, m in enumerate(chat):
        role = m["role"]
        if role == "tool":
            out += "<|im_start|>user" if i == 0 or chat[i - 1]["role"] != "tool" else ""
            out += "\n<tool_response>\n%s\n</tool_response>" % m["content"]
            out += "<|im_end|>\n" if i + 1 == len(chat) or chat[i + 1]["role"] != "tool" else ""
        elif role == "assistant" and m.get("tool_calls"):
            out += "<|im_start|>assistant" + ("\n" + m["content"] if m["content"] else "")
            for call in m["tool_calls"]:
                f = call["function"]
                out += "\n<tool_call>\n{\"name\": \"%s\", \"arguments\": %s}\n</tool_call>" % (f["name"], json.dumps(f["arguments"], ensure_ascii=False))
            out += "<|im_end|>\n"
        elif role in ("user", "assistant") or (role == "system" and i):
            out += "<|im_start|>%s\n%s<|im_end|>\n" % (role, m["content"])
    return out + ("<|im_start|>assistant\n" if prompt else "")


def families():
    cases = []
    for family, write in (("chatml", f_chatml), ("llama2", f_llama2), ("llama3", f_llama3), ("mistral", f_mistral), ("zephyr", f_zephyr), ("qwen", f_qwen)):
        for name, chat in CHATS.items():
            for prompt in (True, False):
                for tools in (None, TOOLS) if family == "qwen" else (None,):
                    case = {"family": family, "name": name, "messages": chat, "add_generation_prompt": prompt, "tools": tools}
                    try:
                        case["rendered"] = write(chat, prompt, tools)
                    except ValueError as error:
                        case["raised"] = str(error)
                    cases.append(case)
    return {"bos_token": "<s>", "eos_token": "</s>", "cases": cases}


def write(name, value):
    with open(os.path.join(HERE, name), "w", encoding="utf-8") as f:
        json.dump(value, f, ensure_ascii=False, indent=1)
        f.write("\n")


if __name__ == "__main__":
    write("language.json", language())
    write("families.json", families())
