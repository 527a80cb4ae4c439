"""``report.html``: one file that a person opens, with the pictures inside it."""

import base64
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from flower_app.results import ResultsFolder

# The template is a Python string because Flower's app bundle carries no HTML files.
_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ m.model }} on {{ m.dataset }}: a private federated run</title>
<style>
:root { color-scheme: light dark; --ink: #1f2933; --soft: #616e7c; --line: #e4e7eb;
  --page: #f7f8fa; --card: #ffffff; --good: #2f9e63; --warn: #b44d12; --blue: #2a6fdb; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7eb; --soft: #9aa5b1; --line: #323f4b;
  --page: #161b22; --card: #1f2630; --good: #57d18d; --warn: #f0a35e; --blue: #7fb0ff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1.2rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .3rem; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .8rem; }
p { margin: .5rem 0; } .soft { color: var(--soft); } .warn { color: var(--warn); }
.figures { display: grid; gap: .8rem; margin: 1.6rem 0;
  grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); }
.figure { background: var(--card); border: 1px solid var(--line); border-radius: .7rem;
  padding: .9rem 1rem; }
.figure b { display: block; font-size: 1.6rem; font-variant-numeric: tabular-nums; }
.figure span { color: var(--soft); font-size: .88rem; }
figure { margin: 1rem 0; background: #fff; border: 1px solid var(--line); border-radius: .7rem;
  padding: .6rem; }
figure img { display: block; width: 100%; height: auto; }
figcaption { color: #616e7c; font-size: .88rem; padding: .4rem .4rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; background: var(--card); font-size: .93rem; }
th, td { text-align: left; vertical-align: top; padding: .45rem .7rem;
  border: 1px solid var(--line); }
th { font-weight: 600; white-space: nowrap; }
code { font-size: .9em; overflow-wrap: anywhere; }
details summary { cursor: pointer; color: var(--blue); }
ul { padding-left: 1.2rem; }
</style>
</head>
<body>
<main>
<h1>{{ m.model }} on {{ m.dataset }}: a private federated run</h1>
<p class="soft">{{ when }} · {{ "deployed SuperNodes" if m.deployed else "simulation" }} ·
{{ "{:,}".format(c.population) }} clients · {{ c.rounds }} rounds</p>
{% if not c.private %}<p class="warn"><strong>This run is not private:</strong> its randomness was
seeded or it had no noise.</p>{% endif %}
{% if c.stopped %}<p class="warn"><strong>Ended early:</strong> {{ c.stopped }}.</p>{% endif %}

<div class="figures">
<div class="figure"><b>{{ percent(m.accuracy.test) }}</b><span>test accuracy</span></div>
<div class="figure"><b>ε = {{ number(c.epsilon) }}</b>
<span>at δ = {{ "%g"|format(c.delta) }}, for every client</span></div>
{% if e %}
<div class="figure"><b>{{ percent(e.agreement) }}</b>
<span>of {{ e.images }} encrypted answers as in the clear</span></div>
<div class="figure"><b>{{ "%.1f"|format(e.ms_per_image) }} ms</b>
<span>to evaluate one encrypted image</span></div>
{% endif %}
</div>

<h2>What is promised, and to whom</h2>
<div class="scroll"><table>
<tr><th>Promise</th><th>Protects</th><th>Against</th><th>Trusts</th></tr>
<tr><td>Client-level differential privacy, ε = {{ number(c.epsilon) }} at
δ = {{ "%g"|format(c.delta) }}: with or without any one client, the released models are nearly as
likely.</td><td>{{ c.unit }}</td><td>everybody who sees the model, in every round or at the end
</td><td>{{ c.trusted }}</td></tr>
{% if c.secure_aggregation %}<tr><td>Secure aggregation: the sum of at least
{{ c.secure_aggregation.minimum }} clients' updates is opened, or nothing
{% if c.secure_aggregation.aborted_rounds %}({{ c.secure_aggregation.aborted_rounds|length }}
rounds opened nothing){% endif %}.</td><td>each client's update</td>
<td>a server that is {{ c.secure_aggregation.server }}, together with
{{ "%g"|format(100 * c.secure_aggregation.corrupt) }} % of a round's clients</td>
<td>the client's own machine and the code that runs there</td></tr>
{% endif %}
<tr><td>Record-level differential privacy:
{% if r.epsilon_max is none %}none. {{ r.reason }}.
{% else %}ε ≤ {{ number(r.epsilon_max) }} at δ = {{ "%g"|format(r.delta) }};
{{ r.note }}.{% endif %}
</td><td>{{ r.unit|default("–") }}</td>
<td>{{ "–" if r.epsilon_max is none else "the server too" }}</td>
<td>{{ r.trusted|default("–") }}</td></tr>
{% if e %}<tr><td>Encrypted inference: images were evaluated under CKKS at {{ e.security_bits }}
bits by a process that holds no secret key.</td><td>the question and its answer</td>
<td>whoever evaluates the model, honest but curious</td><td>the data owner's own machine</td></tr>
{% endif %}
</table></div>
<p>Tuning cost ε = {{ m.privacy.tuning.epsilon }}: {{ m.privacy.tuning.reason }}.</p>

<h2>What was seen</h2>
{% for caption, data in pictures.items() %}
<figure><img alt="{{ caption }}" src="data:image/png;base64,{{ data }}">
<figcaption>{{ caption }}</figcaption></figure>
{% endfor %}

<h2>How the noise was set</h2>
<div class="scroll"><table>
<tr><th>Sampling</th><td>{{ c.sampling }}, q = {{ "%g"|format(c.sampling_rate) }} of
N = {{ "{:,}".format(c.population) }}: {{ "%.0f"|format(c.sampling_rate * c.population) }} clients
expected a round</td></tr>
<tr><th>Clipping norm</th><td>S = {{ "%g"|format(c.clipping_norm) }}</td></tr>
<tr><th>Noise multiplier</th><td>z = {{ "%.4f"|format(c.noise_multiplier) }}; σ = z·S on the sum
</td></tr>
<tr><th>Mechanism</th><td>{{ c.mechanism }}</td></tr>
<tr><th>Accountant</th><td>{{ c.accountant }}, {{ c.adjacency }}</td></tr>
<tr><th>ε covers</th><td>{{ c.covers }}</td></tr>
</table></div>
<p class="soft">ε follows from <code>privacy-ledger.jsonl</code> alone:
<code>python -m privacy.accounting ledger privacy-ledger.jsonl --delta {{ "%g"|format(c.delta) }}
</code></p>

{% if e %}
<h2>Encrypted inference</h2>
<div class="scroll"><table>
<tr><th>Images</th><td>{{ e.images }} test images</td></tr>
<tr><th>Accuracy</th><td>{{ percent(e.accuracy) }}</td></tr>
<tr><th>Largest logit error</th><td>{{ "%.2g"|format(e.max_logit_error) }}</td></tr>
<tr><th>Bytes</th><td>{{ "{:,}".format(e.query_bytes) }} a question,
{{ "{:,}".format(e.answer_bytes) }} an answer, {{ "{:,}".format(e.public_key_bytes) }} of public
keys once</td></tr>
<tr><th>Released</th><td>{{ e.release }}</td></tr>
</table></div>
{% endif %}

<h2>What is not promised</h2>
<ul>
{% if c.secure_aggregation %}
<li>A client that lies can add anything to the sum: the server cannot clip what it cannot see.</li>
{% else %}
<li>The server sees each client's update in the clear; it is trusted not to keep it.</li>
{% endif %}
<li>Poisoning is bounded (no client moves a round's sum by more than S), not prevented.</li>
<li>Answers to encrypted questions can be used to copy a model, one question at a time.</li>
<li>Correct answers from a malicious evaluator are not guaranteed.</li>
</ul>

<h2>Settings</h2>
<details><summary>All {{ config|length }} settings of this run</summary>
<div class="scroll"><table>
{% for name, value in config.items() %}<tr><th>{{ name }}</th><td><code>{{ value }}</code></td></tr>
{% endfor %}</table></div></details>
</main>
</body>
</html>
"""


def write_report(
    folder: ResultsFolder,
    metrics: Mapping[str, Any],
    config: Mapping[str, Any],
    pictures: Mapping[str, Path],
) -> None:
    """Write ``report.html``, self-contained.

    Parameters
    ----------
    folder : ResultsFolder
        Where.
    metrics, config : mapping
        As in ``metrics.json`` and ``config.json``.
    pictures : mapping of str to Path
        PNG files by caption.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    page = environment.from_string(_TEMPLATE).render(
        m=metrics,
        c=metrics["privacy"]["client_level"],
        r=metrics["privacy"]["record_level"],
        e=metrics["encrypted"],
        config=config,
        pictures={
            caption: base64.b64encode(path.read_bytes()).decode()
            for caption, path in pictures.items()
        },
        when=f"{datetime.now(UTC):%d %B %Y, %H:%M} UTC",
        percent=lambda value: f"{100 * value:.2f} %",
        number=lambda value: "∞" if value is None else f"{value:.3g}",
    )
    folder.file("report.html").write_text(page, encoding="utf-8")
