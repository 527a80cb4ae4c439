"""The page of ``report.html``, of a run over clients or over silos.

Python strings, because Flower's app bundle carries no HTML files. It loads nothing from anywhere.
"""

from flower_app.report import client_parts, silo_parts
from flower_app.report.page_parts import (
    ABOUT,
    ACCURACY,
    CERTIFICATE,
    CHECK,
    CODE,
    EVALUATOR,
    EVERYBODY_ELSE,
    FIGURES,
    HEAD,
    HOLDINGS,
    NOT_RECOGNISED,
    QUESTIONS,
    ROUNDS,
    TUNING,
    VERDICT,
)

_FIGURE = """{% macro figure(name) %}<figure>{{ pictures[name].svg }}
<figcaption>{{ pictures[name].caption }}</figcaption></figure>{% endmacro %}
"""

_SECTIONS = """<nav aria-label="Sections">
<a href="#about">Who and why</a><a href="#meaning">What it means</a>
{% if silos %}<a href="#observers">Against whom</a>{% endif %}
<a href="#promises">What was promised</a><a href="#trust">Who trusted whom</a>
<a href="#accuracy">Accuracy</a>
{% if silos %}<a href="#noise">Noise in shares</a>{% endif %}
<a href="#rounds">By {{ played }}</a>
{% if alternatives %}<a href="#alternatives">Other settings</a>{% endif %}
{% if e or m.encrypted_failure %}<a href="#encrypted">Encrypted inference</a>{% endif %}
<a href="#uncounted">What is not counted</a><a href="#check">Check it yourself</a>
</nav>

"""

_MEANING = """<h2 id="meaning">What it means</h2>
{% if c.private and c.epsilon is not none %}
<p>Protected is {{ c.unit }}. Whatever was released becomes at most e<sup>ε</sup> times more or less
likely by any one {{ one }}
({{ "more than any number here" if odds is none else n(odds) ~ " times" }}), up to a
probability δ = {{ g(c.delta) }} of showing more. Whoever sees all models{%
if reported and counted %} and the accuracy that nodes measured{% endif %}, knows
everything about all other {{ one }}s{{ " but not who was drawn"
if not silos and c.sampling_rate < 1 and c.sampling != "cyclic-groups" }}, and asks whether
one {{ one }} took part, starts at even odds and ends
<strong>{{ "at most " ~ percent(guess) }}</strong> sure, by the release that happens to tell
most{% if c.epsilon > 4 %}, which is little protection against an attacker who knows that
much{% endif %}; over all releases such guesses are right as rarely as the first line says. ε is a
limit that no attack can pass while what is trusted below holds, not an estimate of what one would
find.</p>
<p>In other words: an attack that wrongly suspects 1 % of the {{ one }}s that were not there finds
at most <strong>{{ percent(c.attack_success["0.01"]) }}</strong> of those that were; one that
wrongly suspects 10 %, at most <strong>{{ percent(c.attack_success["0.1"]) }}</strong>.
{% if c.gaussian_dp_mu is not none %}At this δ and every larger one the run is no less private than
one Gaussian release whose two worlds are μ = {{ number(c.gaussian_dp_mu) }} standard deviations
apart.{% endif %}</p>
{% if silos and task and task.unit == "person" %}
<p>All rows of one person in a silo are protected together; a person in two silos counts as two.</p>
{% elif silos %}
<p>The {{ things }} name no persons, so a person with k records is protected at k times this ε, and
at a δ that is up to k·e<sup>(k−1)ε</sup> times as large.</p>
{% else %}
<p>{% if c.sampling == "full" or c.sampling_rate == 1 %}Every client was asked in every round, so ε
needs no secrecy about who was drawn{% elif c.sampling == "cyclic-groups" %}Clients took part in
turns, and noise was correlated over the rounds (docs/how-to/correlated-noise.md). ε needs no
secrecy about who was asked{% else %}ε counts on nobody learning who was drawn. Against
whoever does learn it, a drawn client about itself for one, it is
<strong>ε = {{ number(c.epsilon_without_amplification) }}</strong>{% endif %}.
That there are N = {{ n(c.population) }} registered clients is public: “without a
client” means that it adds zero, not that nobody knows of it.</p>
{% endif %}
{% else %}
<p class="warn">Nothing: something was released without fresh noise, so that ε is infinite, and the
models may show whatever a {{ one }} holds.</p>
{% endif %}

"""

_PROMISES = f"""<h2 id="promises">What was promised, to whom, against whom</h2>
<table class="stack promises">
<thead><tr><th>Promise</th><th>To whom</th><th>Against whom</th>
<th>If these keep their word</th></tr></thead>
<tbody>
{{% if silos %}}{silo_parts.PROMISES}{{% else %}}{client_parts.PROMISES}{{% endif %}}
{QUESTIONS}{{% if not silos %}}{client_parts.FURTHER_PROMISES}{{% endif %}}
</tbody></table>

"""

_TRUST = f"""<h2 id="trust">Who trusted whom with what</h2>
<table class="stack trust">
<thead><tr><th>Who</th><th>Held or saw</th><th>Was trusted to</th></tr></thead>
<tbody>
{{% if silos %}}{silo_parts.TRUST}{{% else %}}{client_parts.TRUST}{{% endif %}}
{EVALUATOR}{EVERYBODY_ELSE}</tbody></table>

"""

_UNCOUNTED = f"""<h2 id="uncounted">What is not counted, and not promised</h2>
<ul>
{TUNING}{{% if silos %}}{silo_parts.UNCOUNTED}{{% else %}}{client_parts.UNCOUNTED}{{% endif %}}
{NOT_RECOGNISED}</ul>

"""

_CHECK = f"""<h2 id="check">Check it yourself</h2>
<table><tbody>
{{% if silos %}}{silo_parts.CHECK}{{% else %}}{client_parts.CHECK}{{% endif %}}
{CODE}</tbody></table>
{CHECK}"""

TEMPLATE = "".join(
    (
        _FIGURE,
        HEAD,
        VERDICT,
        FIGURES,
        _SECTIONS,
        ABOUT,
        _MEANING,
        "{% if silos %}" + silo_parts.OBSERVERS + "{% endif %}",
        _PROMISES,
        _TRUST,
        ACCURACY,
        "{% if silos %}" + silo_parts.NOISE + "{% endif %}",
        ROUNDS,
        "{% if not silos %}" + client_parts.ALTERNATIVES + "{% endif %}",
        CERTIFICATE,
        "{% if not silos %}" + client_parts.NODES + "{% endif %}",
        HOLDINGS,
        _UNCOUNTED,
        _CHECK,
    )
)
