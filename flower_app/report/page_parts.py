"""What the pages of all modes share: head, encrypted answers, pictures, code, settings."""

HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ m.model }} on {{ m.dataset }}: a {{ "private " if c.private }}federated run</title>
<style>
:root { color-scheme: light dark; --ink: #1f2933; --soft: #5b6875; --line: #e1e5ea;
  --page: #f7f8fa; --card: #ffffff; --good: #23814f; --warn: #a8430c; --blue: #2460c0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7eb; --soft: #a3aeb9; --line: #35414d;
  --page: #161b22; --card: #1f2630; --good: #57d18d; --warn: #f0a35e; --blue: #7fb0ff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); overflow-wrap: break-word;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1.2rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem; }
p, li { max-width: 46rem; } p { margin: .5rem 0; }
.soft { color: var(--soft); } .warn { color: var(--warn); } .good { color: var(--good); }
nav { margin: 1rem 0 0; font-size: .93rem; line-height: 1.9; }
nav a { margin-right: 1rem; display: inline-block; }
a { color: var(--blue); }
.figures { display: grid; gap: .8rem; margin: 1.4rem 0;
  grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); }
.figure { background: var(--card); border: 1px solid var(--line); border-radius: .7rem;
  padding: .9rem 1rem; }
.figure b { display: block; font-size: 1.55rem; font-variant-numeric: tabular-nums; }
.figure span { color: var(--soft); font-size: .88rem; }
figure { margin: 1rem 0; background: #fff; border: 1px solid var(--line); border-radius: .7rem;
  padding: .6rem; }
figure.drawn { background: var(--card); }
figure img, figure svg { display: block; width: 100%; height: auto; }
figcaption { color: #5b6875; font-size: .88rem; padding: .4rem .4rem 0; }
figure.drawn figcaption { color: var(--soft); }
svg text { fill: var(--soft); font: 12px system-ui, sans-serif; }
table { border-collapse: collapse; width: 100%; background: var(--card); font-size: .93rem;
  margin: .6rem 0; }
th, td { text-align: left; vertical-align: top; padding: .5rem .7rem;
  border: 1px solid var(--line); }
th { font-weight: 600; } tbody th { width: 24%; }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
code { font-size: .9em; overflow-wrap: anywhere; }
details { margin: .6rem 0; } details summary { cursor: pointer; color: var(--blue); }
ul { padding-left: 1.2rem; } li { margin: .35rem 0; }
@media (max-width: 42rem) {
  main { padding: 1.2rem .9rem 3rem; } h1 { font-size: 1.4rem; }
  tbody th { width: 45%; } svg text { font-size: 22px; }
  table.stack { background: none; } table.stack thead { display: none; }
  table.stack tr { display: block; border: 1px solid var(--line); border-radius: .6rem;
    margin: .7rem 0; padding: .5rem .8rem; background: var(--card); }
  table.stack th, table.stack td { display: block; width: auto; border: 0; padding: .25rem 0; }
  table.stack td::before { display: block; font-size: .78rem; color: var(--soft); }
  .promises td:nth-of-type(1)::before { content: "To whom"; }
  .promises td:nth-of-type(2)::before { content: "Against whom"; }
  .promises td:nth-of-type(3)::before { content: "If these keep their word"; }
  .promises td.why::before { content: "Why"; }
  .trust td:nth-of-type(1)::before { content: "Held or saw"; }
  .trust td:nth-of-type(2)::before { content: "Was trusted to"; }
}
@media print { body { background: #fff; } nav { display: none; } h2 { break-after: avoid; } }
</style>
</head>
<body>
<main>
"""

FIGURES = """{% if large_delta %}
<p class="warn"><strong>δ is too large:</strong> {{ large_delta }}.</p>
{% endif %}
{% if c.stopped %}<p class="warn"><strong>Ended early:</strong> {{ c.stopped }}.</p>{% endif %}

<div class="figures">
<div class="figure"><b>{{ percent(m.accuracy.test) }}</b><span>test accuracy</span></div>
<div class="figure"><b>ε = {{ number(c.epsilon) }}</b>
<span>at δ = {{ g(c.delta) }}, for every {{ protected }}</span></div>
{% if e %}
<div class="figure"><b>{{ percent(e.agreement) }}</b>
<span>of {{ e.images }} {{ "answers in shares" if e.backend == "shared" else "encrypted answers" }}
as in the clear</span></div>
<div class="figure"><b>{{ "%.1f"|format(e.ms_per_image) }} ms</b>
<span>{{ "from an image to its answer, in shares" if e.backend == "shared"
else "to evaluate one encrypted image" }}</span></div>
{% endif %}
</div>
"""

OTHER_WORDS = """<p>In other words: an attack that wrongly suspects 1 % of the {{ protected }}s that
were not there finds at most <strong>{{ percent(c.attack_success["0.01"]) }}</strong> of those that
were; one that wrongly suspects 10 %, at most
<strong>{{ percent(c.attack_success["0.1"]) }}</strong>.
{% if c.gaussian_dp_mu is not none %}At this δ and every larger one the run is no less private than
one Gaussian release whose two worlds are μ = {{ number(c.gaussian_dp_mu) }} standard deviations
apart.{% endif %}</p>
"""

QUESTIONS = """<tr><th>{% if e and e.backend == "shared" %}Questions and answers in secret shares{%
else %}Encrypted questions and answers{% if e %},
CKKS at {{ e.security_bits }} bits{% endif %}{% endif %}
{% if not e %}: not in this run{% endif %}</th>
{% if e and e.backend == "shared" %}
<td>who asks: the question and its answer; the model's owner: its weights</td>
<td>either of the two workers, and the provider of their randomness</td>
<td>the workers and the provider: no two of them collude. Here all were processes of one machine,
which shows the protocol and protects from nobody</td>
{% elif e %}
<td>who asks: the question and its answer</td>
<td>whoever evaluates the model and follows the protocol</td>
<td>the asking person's own machine</td>
{% else %}
<td>–</td><td>–</td><td class="why">{% if reported %}nobody asked about the data set's test images
(encrypted-test-images = 0); the nodes asked about their own, see below{% else %}no encrypted
questions were asked (encrypted-test-images = 0){% endif %}</td>
{% endif %}</tr>
"""

EVALUATOR = """{% if e and e.backend == "shared" %}<tr><th>Each of the two workers</th>
<td>a share of the model, of each question and of its answer</td>
<td>follow the protocol; collude neither with the other nor with the provider</td></tr>
<tr><th>The provider of shared randomness</th><td>the plan alone: no share, no message</td>
<td>follow the protocol; collude with neither worker</td></tr>
<tr><th>Who asks</th><td>the question and the answer</td>
<td>not ask so often that the model is copied</td></tr>
{% elif e %}<tr><th>The evaluator of encrypted questions</th>
<td>the model, public keys and ciphertexts; no secret key</td>
<td>follow the protocol, and not learn a decrypted answer
elsewhere</td></tr>
<tr><th>Who asks</th><td>the question, the secret key, the answer</td>
<td>keep the key; not ask so often that the model is copied</td></tr>
{% endif %}
"""

SPENT = """<h2 id="rounds">ε by {{ played }}</h2>
{% if chart %}
<figure class="drawn">{{ chart }}
<figcaption>What had been spent after each {{ played }}, at δ = {{ g(c.delta) }}; the budget is
the dashed line.{% if counted %} The encrypted test-time round came after it and is in the
total.{% endif %}</figcaption></figure>
<details><summary>As a table</summary>
<table><thead><tr><th>{{ played|capitalize }}</th><th>ε so far</th></tr></thead><tbody>
{% for number_of_it, spent in spent_by_round %}<tr><td class="number">{{ number_of_it }}</td>
<td class="number">{{ "%.4f"|format(spent) }}</td></tr>
{% endfor %}</tbody></table></details>
{% else %}<p>There is nothing to draw: no {{ played }} was accounted.</p>{% endif %}
"""

CERTIFICATE = """{% if e and e.backend == "shared" %}
<h2 id="encrypted">Inference in shares: the certificate</h2>
<p>The finished model was asked {{ e.images }} test images in secret shares, by two processes of
which each held a share of the model and of the image. ReLU and maxima are computed as they are.
Their answers beside those of the model in the clear:</p>
<table><tbody>
<tr><th>Same class as in the clear</th><td>{{ percent(e.agreement) }}</td></tr>
<tr><th>Right</th><td>{{ percent(e.accuracy) }} of these images</td></tr>
<tr><th>Largest error of a logit</th><td>{{ "%.2g"|format(e.max_logit_error) }}; proved for every
input: {{ "%.2g"|format(e.proved_logit_error) }}</td></tr>
<tr><th>Security</th><td>what a worker receives is uniformly random, as long as no two of workers
and provider collude</td></tr>
<tr><th>Time</th><td>{{ "%.1f"|format(e.ms_per_image) }} ms from an image to its logits</td></tr>
<tr><th>Bytes</th><td>{{ n(e.query_bytes) }} a question, {{ n(e.answer_bytes) }} an answer;
{{ e.exchanges }} exchanges between the workers, {{ n(e.exchanged_bytes) }} each way;
{{ n(e.material_bytes) }} of material, ahead of time</td></tr>
<tr><th>Released</th><td>{{ e.release }}</td></tr>
</tbody></table>
{% elif e %}
<h2 id="encrypted">Encrypted inference: the certificate</h2>
<p>The finished model was asked {{ e.images }} test images under encryption, by a process that
held the model and public keys only. Its answers beside those of the model in the clear:</p>
<table><tbody>
<tr><th>Same class as in the clear</th><td>{{ percent(e.agreement) }}</td></tr>
<tr><th>Right</th><td>{{ percent(e.accuracy) }} of these images</td></tr>
<tr><th>Largest error of a logit</th><td>{{ "%.2g"|format(e.max_logit_error) }}</td></tr>
<tr><th>Security</th><td>{{ e.security_bits }} bits (CKKS, ring-LWE)</td></tr>
<tr><th>Time</th><td>{{ "%.1f"|format(e.ms_per_image) }} ms to evaluate an image</td></tr>
<tr><th>Bytes</th><td>{{ n(e.query_bytes) }} a question,
{{ n(e.answer_bytes) }} an answer, {{ n(e.public_key_bytes) }} of public
keys once</td></tr>
<tr><th>Released</th><td>{{ e.release }}</td></tr>
</tbody></table>
{% endif %}
"""

ALSO_NOT = """{% if not m.deployed %}<li><strong>The picture of who holds what</strong> shows
{{ protected_at }}' data. It is there because whoever runs a simulation holds all data anyway: do
not share it if they are not public.</li>{% endif %}
<li><strong>Copying:</strong> answers to encrypted questions can be used to copy a model, one
question at a time.</li>
<li><strong>Wrong answers</strong> from a malicious {{ "worker" if e and e.backend == "shared"
else "evaluator" }} are not recognised.</li>
</ul>

"""

PICTURES = """<h2 id="pictures">What was seen</h2>
{% for caption, data in pictures.items() %}
<figure><img alt="{{ caption }}" src="data:image/png;base64,{{ data }}">
<figcaption>{{ caption }}</figcaption></figure>
{% endfor %}
"""

CODE = """<tr><th>Mechanism</th><td>{{ c.mechanism }}</td></tr>
<tr><th>Accountant</th><td>{{ c.accountant }}, {{ c.adjacency }}</td></tr>
<tr><th>ε covers</th><td>{{ c.covers }}</td></tr>
<tr><th>Code</th><td>bloomseal {{ m.software.version }},
commit <code>{{ m.software.commit or "not known" }}</code>; SHA-256 of its source
<code>{{ m.software.source_sha256 }}</code>{% if m.begun_with %}. Rounds before the run
broke off may have been played by the code that it was begun with: bloomseal
{{ m.begun_with.version }},
commit <code>{{ m.begun_with.commit or "not known" }}</code>; SHA-256 of its source
<code>{{ m.begun_with.source_sha256 }}</code>{% endif %}</td></tr>
"""

SETTINGS = """<details><summary>All {{ config|length }} settings of this run</summary>
<table><tbody>
{% for name, value in config.items() %}<tr><th>{{ name }}</th><td><code>{{ value }}</code></td></tr>
{% endfor %}</tbody></table></details>
</main>
</body>
</html>
"""
