"""What the page says in every mode, part by part."""

from flower_app.report.page_style import STYLE

HEAD = (
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ m.model }} on {{ m.dataset }}: a {{ "private " if c.private }}federated run</title>
<style>
"""
    + STYLE
    + """</style>
</head>
<body>
<main>
<h1>{{ m.model }} on {{ m.dataset }}: a {{ "private " if c.private }}federated run{%
if silos %} over {{ c.silos }} silos{% endif %}</h1>
<p class="soft">{{ when }} · {{ "deployed SuperNodes" if m.deployed else "simulation" }} ·
{% if silos %}{{ c.silos }} silos, about {{ n(c.population) }} {{ one }}s in all{% else
%}{{ n(c.population) }} clients{% endif %} · {{ c.rounds }} {{ played }}s · bloomseal
{{ m.software.version }}{{ " · resumed after it had broken off" if m.resumed }}</p>
{% if not c.private %}<p class="warn"><strong>This run is not private:</strong> its randomness was
seeded or it had no noise.</p>{% endif %}
{% if large_delta %}<p class="warn"><strong>δ is too large:</strong> {{ large_delta }}.</p>
{% endif %}
{% if c.stopped %}<p class="warn"><strong>Ended early:</strong> {{ c.stopped }}.</p>{% endif %}

"""
)

VERDICT = """<div class="verdict">
<p><strong>{{ verdict.word }}.</strong> {% if verdict.success < 1 %}Whoever sees all that was
released, knows the data of all other {{ one }}s, and guesses whether one {{ one }} took part is
right at most <strong>{{ percent(verdict.success) }}</strong> of the time, where a coin is right
50 %{% if not silos and c.sampling_rate < 1 and
c.sampling != "cyclic-groups" %}, as long as nobody learns who was
drawn{% endif %}.{% else %}No limit was proved on what was released shows of any one
{{ one }}.{% endif %}</p>
<div class="scale" role="img"
aria-label="On a scale from 50 %, a coin, to 100 %, certainty: {{ percent(verdict.success) }}">
<div class="bands">{% for width, colour in verdict.bands %}<i
style="width: {{ width }}%; background: var({{ colour }})"></i>{% endfor %}</div>
{% for place, label in verdict.ticks %}<span
class="tick{{ " minor" if loop.index in (2, loop.length - 1) }}"
style="left: {{ place }}%">{{ label }}</span>
{% endfor %}<div class="here" style="left: {{ verdict.label_place }}%">{{
percent(verdict.success) }}</div><div class="needle" style="left: {{ verdict.place }}%"></div>
</div>
<p class="soft">How often the best guesser is right, from a coin (50 %) to certainty. The words are
this page's: {{ verdict.legend }}.</p>
</div>
"""

FIGURES = """<div class="figures">
<div class="figure"><b>ε = {{ number(c.epsilon) }}</b>
<span>at δ = {{ g(c.delta) }}, for every {{ one }}</span></div>
<div class="figure"><b>{{ percent(m.accuracy.test) }}</b><span>test accuracy{%
if task and commonest is not none %}, and {{ percent(commonest) }} by always answering the
commonest class{% endif %}</span></div>
{% if e %}
<div class="figure"><b>{{ percent(e.agreement) }}</b>
<span>of {{ e.images }} {{ "answers in shares" if e.backend == "shared" else "encrypted answers" }}
as in the clear</span></div>
{% endif %}
</div>
"""

ABOUT = """<h2 id="about">Who, what and why</h2>
<table><tbody>
{% for name, value in about %}<tr><th>{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}</tbody></table>
"""

ACCURACY = """<h2 id="accuracy">Accuracy, and what privacy cost of it</h2>
<p>{{ percent(m.accuracy.test) }} of the {{ n(tested_on) ~ " " if tested_on }}test {{ things }} of
the data set{{ "" if task else ", which are public," }} are classified right{%
if commonest is not none %}; always answering the commonest class
is right for {{ percent(commonest) }}{% endif %}.
{% if compared %}An otherwise like run with {{ compared.noise }} reached
<strong>{{ percent(compared.accuracy) }}</strong>: {{ compared.verdict }}{% else %}No other run was
named to compare it with, so what privacy cost of the accuracy is not known here
(<code>compare-with</code> names a run's folder, for instance one with ε in the
thousands).{% endif %}</p>
{% if classes %}
<details open><summary>By class, on the test {{ things }}</summary>
<p>Recall: of the {{ things }} of a class, those that were recognised. Precision: of the answers
that name it, those that were right.</p>
<table><thead><tr><th>Class</th><th>Recall</th><th>Precision</th>
<th>{{ things|capitalize }}</th></tr></thead><tbody>
{% for row in classes %}<tr><th>{{ row.name }}</th>
<td class="number">{{ percent(row.recall) if row.recall is not none else "–" }}</td>
<td class="number">{{ percent(row.precision) if row.precision is not none else "–" }}</td>
<td class="number">{{ n(row.count) }}</td></tr>
{% endfor %}</tbody></table></details>
<details open><summary>Confusion matrix: what was answered for {{ things }} of each class</summary>
<div class="sideways"><table class="confusion"><thead><tr><th>true ↓ answered →</th>
{% for row in classes %}<th>{{ row.name }}</th>{% endfor %}</tr></thead><tbody>
{% for row in classes %}<tr><th>{{ row.name }}</th>
{% for cell in row.cells %}<td style="background: rgba(var(--shade), {{
cell.shade }})">{{ n(cell.count) }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div></details>
{% endif %}
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
(encrypted-test-images = 0); the nodes asked about their own, see below{% elif m.encrypted_failure
%}the encrypted questions failed, see below{% else %}no encrypted
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

EVERYBODY_ELSE = """<tr><th>Everybody else</th><td>this folder: the model,
{{ "" if config.ledger else "the ledger, " }}this page</td>
<td>nothing</td></tr>
"""

ROUNDS = """<h2 id="rounds">ε by {{ played }}</h2>
{% if pictures.training %}{{ figure("training") }}{% endif %}
{% if spent_by_round %}
<details{{ "" if pictures.training else " open" }}><summary>ε as a table</summary>
<table><thead><tr><th>{{ played|capitalize }}</th><th>ε so far</th></tr></thead><tbody>
{% for round, spent in spent_by_round %}<tr><td class="number">{{ round }}</td>
<td class="number">{{ "%.4f"|format(spent) }}</td></tr>
{% endfor %}</tbody></table></details>
{% if counted %}<p>The encrypted test-time round came after it and is in the total.</p>{% endif %}
{% else %}<p>There is nothing to show: no {{ played }} was accounted.</p>{% endif %}
{% if pictures.noise %}{{ figure("noise") }}
<p>Orange is the length of the noise that was added to each {{ played }}'s sum, blue what the
clients' updates add up to, estimated from the released models. Where orange is above, no single
{{ played }} tells what the clients sent. The model learns all the same: the noise of many
{{ played }}s points everywhere and cancels out, and what clients have in common does not. Noise far
above over the whole run means a model of little use; noise far below, a large ε.</p>
{% elif c.sampling == "cyclic-groups" %}
<p>No picture holds the noise of a round against its sum: one round has more noise than stays in the
model, for later rounds take a part of it back.</p>
{% endif %}
"""

CERTIFICATE = """{% if e and e.backend == "shared" %}
<h2 id="encrypted">Inference in shares: the certificate</h2>
<p>The finished model was asked {{ e.images }} test {{ things }} in secret shares, by two processes
of which each held a share of the model and of the question. ReLU and maxima are computed as they
are. Their answers beside those of the model in the clear:</p>
<table><tbody>
<tr><th>Same class as in the clear</th><td>{{ percent(e.agreement) }}</td></tr>
<tr><th>Right</th><td>{{ percent(e.accuracy) }} of these {{ things }}</td></tr>
<tr><th>Largest error of a logit</th><td>{{ "%.2g"|format(e.max_logit_error) }}; proved for every
input: {{ "%.2g"|format(e.proved_logit_error) }}</td></tr>
<tr><th>Security</th><td>what a worker receives is uniformly random, as long as no two of workers
and provider collude</td></tr>
<tr><th>Time</th><td>{{ "%.1f"|format(e.ms_per_image) }} ms from a question to its logits</td></tr>
<tr><th>Bytes</th><td>{{ n(e.query_bytes) }} a question, {{ n(e.answer_bytes) }} an answer;
{{ e.exchanges }} exchanges between the workers, {{ n(e.exchanged_bytes) }} each way;
{{ n(e.material_bytes) }} of material, ahead of time</td></tr>
<tr><th>Released</th><td>{{ e.release }}</td></tr>
</tbody></table>
{% elif e %}
<h2 id="encrypted">Encrypted inference: the certificate</h2>
<p>The finished model was asked {{ e.images }} test {{ things }} under encryption, by a process that
held the model and public keys only. Its answers beside those of the model in the clear:</p>
<table><tbody>
<tr><th>Same class as in the clear</th><td>{{ percent(e.agreement) }}</td></tr>
<tr><th>Right</th><td>{{ percent(e.accuracy) }} of these {{ things }}</td></tr>
<tr><th>Largest error of a logit</th><td>{{ "%.2g"|format(e.max_logit_error) }}</td></tr>
<tr><th>Security</th><td>{{ e.security_bits }} bits (CKKS, ring-LWE)</td></tr>
<tr><th>Time</th><td>{{ "%.1f"|format(e.ms_per_image) }} ms to evaluate one {{ thing }}</td></tr>
<tr><th>Bytes</th><td>{{ n(e.query_bytes) }} a question,
{{ n(e.answer_bytes) }} an answer, {{ n(e.public_key_bytes) }} of public
keys once</td></tr>
<tr><th>Released</th><td>{{ e.release }}</td></tr>
</tbody></table>
{% endif %}
{% if m.encrypted_failure %}
<h2 id="encrypted">Encrypted inference was not tested</h2>
<p>The questions to the finished model failed (<code>{{ m.encrypted_failure }}</code>; the run's log
has the reason). Whether it can be asked under encryption is not known; all else on this page
stands.</p>
{% endif %}
{% if e %}<p>{{ wrong_answers }}</p>
{% if pictures.encrypted %}{{ figure("encrypted") }}{% endif %}
{% endif %}
"""

TUNING = """<li><strong>Tuning:</strong> {% if m.privacy.tuning.epsilon is none %}not known:
{{ m.privacy.tuning.reason }}.{% else %}ε = {{ g(m.privacy.tuning.epsilon) }}:
{{ m.privacy.tuning.reason }}. If you kept to it after looking at what your own {{ holder }}s' data
gave, that is not counted.{% endif %}</li>
"""

HOLDINGS = """{% if pictures.holdings %}
<h2 id="holdings">Who holds what</h2>
{{ figure("holdings") }}
{% endif %}
"""

NOT_RECOGNISED = """{% if task and not task.test %}<li><strong>The {{ things }} kept for
testing:</strong> the accuracies and tables of this page count them exactly, and ε does not cover
whoever they are of. Share this page only with whom those counts may reach.</li>{% endif %}
{% if not m.deployed %}<li><strong>The picture of who holds what</strong> shows
{{ holder }}s' data. It is
there because whoever runs a simulation holds all data anyway: do not share it if they are not
public.</li>{% endif %}
<li><strong>Copying:</strong> answers to encrypted questions can be used to copy a model, one
question at a time.</li>
<li><strong>Wrong answers</strong> from a malicious {{ "worker" if e and e.backend == "shared"
else "evaluator" }} are not recognised.</li>
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

CHECK = """{% if c.private %}<p>ε follows from the ledger alone{%
if silos %}, against each observer{% endif %}:
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
