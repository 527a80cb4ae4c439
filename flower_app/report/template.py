"""The page of ``report.html``.

A Python string, because Flower's app bundle carries no HTML files. It loads nothing from anywhere.
"""

TEMPLATE = """<!doctype html>
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
<h1>{{ m.model }} on {{ m.dataset }}: a {{ "private " if c.private }}federated run</h1>
<p class="soft">{{ when }} · {{ "deployed SuperNodes" if m.deployed else "simulation" }} ·
{{ n(c.population) }} clients · {{ c.rounds }} rounds{{
" · resumed after it had broken off" if m.resumed }}</p>
{% if not c.private %}<p class="warn"><strong>This run is not private:</strong> its randomness was
seeded or it had no noise.</p>{% endif %}
{% if large_delta %}<p class="warn"><strong>δ is too large:</strong> {{ large_delta }}.</p>
{% endif %}
{% if c.stopped %}<p class="warn"><strong>Ended early:</strong> {{ c.stopped }}.</p>{% endif %}

<div class="figures">
<div class="figure"><b>{{ percent(m.accuracy.test) }}</b><span>test accuracy</span></div>
<div class="figure"><b>ε = {{ number(c.epsilon) }}</b>
<span>at δ = {{ g(c.delta) }}, for every client</span></div>
{% if e %}
<div class="figure"><b>{{ percent(e.agreement) }}</b>
<span>of {{ e.images }} encrypted answers as in the clear</span></div>
<div class="figure"><b>{{ "%.1f"|format(e.ms_per_image) }} ms</b>
<span>to evaluate one encrypted image</span></div>
{% endif %}
</div>

<nav aria-label="Sections">
<a href="#meaning">What it means</a><a href="#promises">What was promised</a>
<a href="#trust">Who trusted whom</a><a href="#rounds">ε by round</a>
{% if alternatives %}<a href="#alternatives">Other settings</a>{% endif %}
{% if e %}<a href="#encrypted">Encrypted inference</a>{% endif %}
<a href="#uncounted">What is not counted</a><a href="#check">Check it yourself</a>
</nav>

<h2 id="meaning">What it means</h2>
{% if c.private and c.epsilon is not none %}
<p>Whatever was released becomes at most e<sup>ε</sup> times more or less likely by any one client
({{ "more than any number here" if odds is none else number(odds) ~ " times" }}), up to a
probability δ = {{ g(c.delta) }} of showing more. Whoever sees all models{%
if reported and counted %} and the accuracy that nodes measured{% endif %}, knows
everything about all other clients but not who was drawn, and asks whether one client took part,
starts at even odds and is right <strong>{{ "at most " ~ percent(guess) }}</strong> of the
time{% if c.epsilon > 4 %}, which is little protection against an attacker who knows that
much{% endif %}. ε is a limit that no attack can pass while what is trusted below holds, not an
estimate of what one would find.</p>
<p>In other words: an attack that wrongly suspects 1 % of those who took no part finds at most
<strong>{{ percent(c.attack_success["0.01"]) }}</strong> of those who did; one that wrongly
suspects 10 %, at most <strong>{{ percent(c.attack_success["0.1"]) }}</strong>.
{% if c.gaussian_dp_mu is not none %}At this δ and every larger one the run is no less private than
one Gaussian release whose two worlds are μ = {{ number(c.gaussian_dp_mu) }} standard deviations
apart.{% endif %}</p>
<p>{% if c.sampling == "full" or c.sampling_rate == 1 %}Every client was asked in every round, so ε
needs no secrecy about who was drawn{% else %}ε counts on nobody learning who was drawn. Against
whoever does learn it, a drawn client about itself for one, it is
<strong>ε = {{ number(c.epsilon_without_amplification) }}</strong>{% endif %}.
That there are N = {{ n(c.population) }} registered clients is public: “without a
client” means that it adds zero, not that nobody knows of it.</p>
{% else %}
<p class="warn">Nothing: something was released without fresh noise, so that ε is infinite, and the
models may show whatever a client holds.</p>
{% endif %}

<h2 id="promises">What was promised, to whom, against whom</h2>
<table class="stack promises">
<thead><tr><th>Promise</th><th>To whom</th><th>Against whom</th>
<th>If these keep their word</th></tr></thead>
<tbody>
{% if c.private and c.epsilon is not none %}
<tr><th>Client-level differential privacy, ε = {{ number(c.epsilon) }} at
δ = {{ g(c.delta) }}, {{ c.adjacency }}</th>
<td>{{ c.unit }}, in {{ c.covers }}</td>
<td>everybody who sees the model, in every round or at the end{%
if reported and counted %}, and the accuracy that nodes measured{% endif %}, and does not learn
who was drawn</td>
<td>{{ c.trusted }}</td></tr>
{% else %}
<tr><th>Client-level differential privacy: not in this run</th>
<td>–</td><td>–</td><td class="why">something was released without fresh noise</td></tr>
{% endif %}
<tr><th>Record-level differential privacy:
{% if r.epsilon_max is none %}not in this run
{% else %}ε ≤ {{ number(r.epsilon_max) }} at δ = {{ g(r.delta) }}{% endif %}</th>
{% if r.epsilon_max is none %}
<td>–</td><td>–</td><td class="why">{{ r.reason }}</td>
{% else %}
<td>{{ r.unit }}</td><td>the server too</td>
<td>{{ r.trusted }}. It is {{ r.note }}</td>
{% endif %}</tr>
<tr><th>Encrypted questions and answers{% if e %}, CKKS at {{ e.security_bits }} bits{% endif %}
{% if not e %}: not in this run{% endif %}</th>
{% if e %}
<td>who asks: the question and its answer</td>
<td>whoever evaluates the model and follows the protocol</td>
<td>the asking person's own machine</td>
{% else %}
<td>–</td><td>–</td><td class="why">{% if reported %}nobody asked about the data set's test images
(encrypted-test-images = 0); the nodes asked about their own, see below{% else %}no encrypted
questions were asked (encrypted-test-images = 0){% endif %}</td>
{% endif %}</tr>
{% if t and t.accuracy is defined %}
<tr><th>Encrypted test-time round: nodes tested the model on images of their own, under keys of
their own</th>
<td>a node: its test images and labels; {{ t.node_noise }}</td>
<td>the server, which follows the protocol</td>
<td>the node's own machine</td></tr>
{% endif %}
{% if s %}
<tr><th>Secure aggregation: the sum of at least
{{ s.min_clients }} clients' updates is opened, or nothing{%
if s.aborted_rounds %}
({{ s.aborted_rounds|length }} rounds opened nothing){% endif %}.
{% if not distributed %}The server adds the noise, and sees the sum without it{% elif
s.epsilon_against_server is not none %}Clients add the noise: ε =
{{ number(s.epsilon_against_server) }} against the server, for what a client
holds{% if reported %}, its report on the finished model apart{% endif %}{%
else %}Clients add the noise to the sum. Against the server ε = ∞ all the same: {% if
not c.private %}the run is not private{% else %}what else {{ c.covers }} released, such as nodes'
reports of an encrypted test-time round, the server saw before it added the noise{% endif
%}{% endif %}</th>
<td>each client: its own update</td>
<td>a server that is {{ s.server }}, together with
{{ g(100 * s.max_corrupt_fraction) }} % of a round's clients</td>
<td>the client's own machine and the code that runs
there</td></tr>
{% else %}
<tr><th>No client moves a round's sum by more than S = {{ g(c.clipping_norm) }}</th>
<td>the model, and all other clients</td>
<td>malicious and broken clients</td>
<td>the server, which bounds what it receives</td></tr>
{% endif %}
</tbody></table>

<h2 id="trust">Who trusted whom with what</h2>
<table class="stack trust">
<thead><tr><th>Who</th><th>Held or saw</th><th>Was trusted to</th></tr></thead>
<tbody>
<tr><th>Each client</th><td>its own data; every model it was sent</td>
<td>{% if m.deployed %}keep its own data{% if
s %}; follow the protocol and bound its own update, all but
{{ g(100 * s.max_corrupt_fraction) }} % of a round's clients{% else
%}; nothing towards others{% endif %}{% else %}nothing: in this simulation all clients were
processes on the one machine that held all data{% endif %}</td></tr>
<tr><th>The server</th><td>{% if s %}the sum
of each round's updates{% if distributed %}, with the clients' noise in it{% endif %}{% else
%}every drawn client's update in the clear{% endif %}, who was drawn,
and who answered{% if reported %}; of the encrypted test-time round each node's report, with the
node's own noise, and ciphertexts{% endif %}</td>
<td>{{ c.trusted|replace("the server, to ", "") }}; draw cohorts with
randomness that nobody foresees</td></tr>
{% if e %}<tr><th>The evaluator of encrypted questions</th>
<td>the model, public keys and ciphertexts; no secret key</td>
<td>follow the protocol, and not learn a decrypted answer
elsewhere</td></tr>
<tr><th>Who asks</th><td>the question, the secret key, the answer</td>
<td>keep the key; not ask so often that the model is copied</td></tr>
{% endif %}
<tr><th>Everybody else</th><td>this folder: the model,
{{ "" if config.ledger else "the ledger, " }}this page</td>
<td>nothing</td></tr>
</tbody></table>

<h2 id="rounds">ε by round</h2>
{% if chart %}
<figure class="drawn">{{ chart }}
<figcaption>What had been spent after each round, at δ = {{ g(c.delta) }}; the budget is
the dashed line.{% if counted %} The encrypted test-time round came after it and is in the
total.{% endif %}</figcaption></figure>
<details><summary>As a table</summary>
<table><thead><tr><th>Round</th><th>ε so far</th></tr></thead><tbody>
{% for round, spent in spent_by_round %}<tr><td class="number">{{ round }}</td>
<td class="number">{{ "%.4f"|format(spent) }}</td></tr>
{% endfor %}</tbody></table></details>
{% else %}<p>There is nothing to draw: no round was accounted.</p>{% endif %}

{% if alternatives %}
<h2 id="alternatives">What other settings would have cost</h2>
<p>The same run with one setting changed, at δ = {{ g(c.delta) }}. Less noise or more
rounds cost privacy; which of them would have helped the accuracy, nobody tried.</p>
<table><thead><tr><th>If there had been</th><th>ε</th></tr></thead><tbody>
<tr><th>the training of this run, by itself and every round played once:
z = {{ "%.3f"|format(c.noise_multiplier) }}, q = {{ g(c.sampling_rate) }},
{{ c.rounds }} rounds</th>
<td class="number"><strong>{{ number(own_epsilon) }}</strong></td></tr>
{% for change, cost in alternatives.items() %}<tr><th>{{ change }}</th>
<td class="number">{{ number(cost) }}</td></tr>
{% endfor %}</tbody></table>
{% endif %}

{% if e %}
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

{% if t %}
<h2 id="nodes">Encrypted test-time round over the nodes</h2>
{% if t.skipped is defined %}<p class="warn">{{ "Held, and lost" if counted else "Not held" }}:
{{ t.skipped }}</p>{% else %}
<table><tbody>
<tr><th>Nodes</th><td>{{ n(t.nodes_asked) }} asked, about
{{ "{:,g}".format(t.nodes_answered) }} answered</td></tr>
<tr><th>Accuracy</th><td>{% if t.accuracy is none %}too few answered to tell{% else %}
{{ percent(t.accuracy) }}{% if t.accuracy_noise %}, with noise of standard deviation
{{ percent(t.accuracy_noise) }}{% endif %}, on images that only their nodes saw{% endif %}</td></tr>
<tr><th>Released</th><td>{{ t.release }}</td></tr>
<tr><th>Images</th><td>up to {{ t.images_per_node }} of each
node{% if t.ms_per_image is not none %}, {{ "%.1f"|format(t.ms_per_image) }} ms to evaluate
one{% endif %}</td></tr>
<tr><th>Bytes</th><td>{{ n(t.bytes_from_node) }} from a node that asks about so many
(keys and questions), {{ n(t.bytes_to_node) }} back</td></tr>
</tbody></table>{% endif %}
{% endif %}

<h2 id="uncounted">What is not counted, and not promised</h2>
<ul>
<li><strong>Tuning:</strong> {% if m.privacy.tuning.epsilon is none %}not known:
{{ m.privacy.tuning.reason }}.{% else %}ε = {{ g(m.privacy.tuning.epsilon) }}:
{{ m.privacy.tuning.reason }}. If you kept to it after looking at what your own clients' data gave,
that is not counted.{% endif %}</li>
<li><strong>Other runs:</strong> this ε covers {{ c.covers }}. Runs with another ledger on the same
clients add to it.</li>
<li><strong>Runs that ended early:</strong> a round is paid before its result is used, so a run
that broke off has paid for what it released. A round that is played again is paid again.</li>
{% if reported and not counted %}<li><strong>The nodes' reports</strong>
of the encrypted test-time round: {{ t.release }}.</li>
{% endif -%}
<li><strong>Timing and errors:</strong> how long a round took and why a client failed are not
noised; they stay in the operator's log, which is not part of this folder.{% if not m.deployed %}
(The seconds of the whole simulation{{ ", since it was resumed," if m.resumed }} are in
<code>metrics.json</code>: its clients are not real.){% endif %}</li>
<li><strong>Groups:</strong> k clients together, for instance devices of one person, are protected
at k times this ε, and at a δ that is up to k·e<sup>(k−1)ε</sup> times as large.</li>
{% if not m.deployed %}<li><strong>The picture of who holds what</strong> shows clients' data. It is
there because whoever runs a simulation holds all data anyway: do not share it if they are not
public.</li>{% endif %}
{% if s %}<li><strong>Poisoning:</strong> a client that lies can add anything to
a sum; the server cannot bound what it cannot see.</li>
{% else %}<li><strong>Poisoning</strong> is bounded (no client moves a round's sum by more than S),
not prevented.</li>
{% endif %}
<li><strong>Copying:</strong> answers to encrypted questions can be used to copy a model, one
question at a time.</li>
<li><strong>Wrong answers</strong> from a malicious evaluator are not recognised.</li>
</ul>

<h2 id="pictures">What was seen</h2>
{% for caption, data in pictures.items() %}
<figure><img alt="{{ caption }}" src="data:image/png;base64,{{ data }}">
<figcaption>{{ caption }}</figcaption></figure>
{% endfor %}

<h2 id="check">Check it yourself</h2>
<table><tbody>
<tr><th>Sampling</th><td>{{ c.sampling }}, q = {{ g(c.sampling_rate) }} of
N = {{ n(c.population) }}: {{ "%.0f"|format(c.sampling_rate * c.population) }} clients
expected a round</td></tr>
<tr><th>Clipping norm</th><td>S = {{ g(c.clipping_norm) }}</td></tr>
<tr><th>Noise multiplier</th><td>{% if c.noise_multiplier is none %}–{% else %}z =
{{ "%.4f"|format(c.noise_multiplier) }}; σ = z·S on {% if distributed %}the sum of the fewest
clients, as the server sees it, without its colluders' shares{% else %}the sum{% endif %}{% endif
%}</td></tr>
<tr><th>Mechanism</th><td>{{ c.mechanism }}</td></tr>
<tr><th>Accountant</th><td>{{ c.accountant }}, {{ c.adjacency }}</td></tr>
<tr><th>ε covers</th><td>{{ c.covers }}</td></tr>
<tr><th>Code</th><td>bloomseal {{ m.software.version }},
commit {{ m.software.commit or "not known" }}; SHA-256 of its source
<code>{{ m.software.source_sha256 }}</code>{% if m.begun_with %}. Rounds before the run
broke off may have been played by the code that it was begun with: bloomseal
{{ m.begun_with.version }},
commit {{ m.begun_with.commit or "not known" }}; SHA-256 of its source
<code>{{ m.begun_with.source_sha256 }}</code>{% endif %}</td></tr>
</tbody></table>
{% if c.private %}<p>ε follows from the ledger alone:
<code>python -m privacy.accounting ledger {{ ledger }} --delta {{ g(c.delta) }}
</code></p>{% endif %}
<p class="soft">What this page says of the run is in <code>metrics.json</code> and
<code>config.json</code>, beside it{% if alternatives %}; the costs of other settings are worked out
from that{% endif %}.</p>
<details><summary>All {{ config|length }} settings of this run</summary>
<table><tbody>
{% for name, value in config.items() %}<tr><th>{{ name }}</th><td><code>{{ value }}</code></td></tr>
{% endfor %}</tbody></table></details>
</main>
</body>
</html>
"""
