"""The page of ``report.html``, in a run over silos: what each record was promised."""

from flower_app.report.page_parts import (
    ALSO_NOT,
    CERTIFICATE,
    CODE,
    EVALUATOR,
    FIGURES,
    HEAD,
    OTHER_WORDS,
    PICTURES,
    QUESTIONS,
    SETTINGS,
    SPENT,
    TASK,
)

SILO_TEMPLATE = (
    HEAD
    + """<h1>{{ m.model }} on {{ m.dataset }}: a private federated run over {{ c.silos }} silos</h1>
<p class="soft">{{ when }} · {{ "deployed SuperNodes" if m.deployed else "simulation" }} ·
{{ c.silos }} silos, about {{ n(c.population) }} records in all · {{ c.rounds }} steps{{
" · resumed after it had broken off" if m.resumed }}</p>
"""
    + FIGURES
    + """

<nav aria-label="Sections">
<a href="#meaning">What it means</a><a href="#observers">Against whom</a>
<a href="#promises">What was promised</a><a href="#trust">Who trusted whom</a>
<a href="#noise">Noise in shares</a><a href="#rounds">ε by step</a>
{% if e %}<a href="#encrypted">Encrypted inference</a>{% endif %}
<a href="#uncounted">What is not covered</a><a href="#check">Check it yourself</a>
</nav>
"""
    + TASK
    + """
<h2 id="meaning">What it means</h2>
<p>Protected is {{ c.unit }}. Whatever was released becomes at most e<sup>ε</sup> times more or
less likely by any one record
({{ "more than any number here" if odds is none else number(odds) ~ " times" }}), up to a
probability δ = {{ g(c.delta) }} of showing more. Whoever knows everything about all other records,
and asks whether one record was there, starts at even odds and is right
<strong>{{ "at most " ~ percent(guess) }}</strong> of the time{% if c.epsilon is none or
c.epsilon > 4 %}, which is little protection against an attacker who knows that much{% endif %}. ε
is a limit that no attack can pass while what is trusted below holds, not an estimate of what one
would find.</p>
"""
    + OTHER_WORDS
    + """
{% if not task or task.unit == "row" %}
<p>The {{ things }} name no persons, so a person with k records is protected at k times this ε, and
at a δ that is up to k·e<sup>(k−1)ε</sup> times as large.</p>{% endif %}

<h2 id="observers">ε against whom</h2>
<p>The figure of this page is the last of these: the noise is sized for it before the run.</p>
<table><thead><tr><th>Who looks</th><th>What they see</th><th>ε</th></tr></thead><tbody>
{% for observer in observers %}<tr><th>{{ observer.who }}</th><td>{{ observer.sees }}</td>
<td class="number">{{ number(observer.epsilon) }}</td></tr>
{% endfor %}</tbody></table>
<p>At δ = {{ g(c.delta) }} in each. Each silo draws its records by coins of its own, which not even
the server sees, so that sampling amplifies against the server too. Against whoever does learn the
draws it is <strong>ε = {{ number(c.epsilon_without_amplification) }}</strong>.</p>

<h2 id="promises">What was promised, to whom, against whom</h2>
<table class="stack promises">
<thead><tr><th>Promise</th><th>To whom</th><th>Against whom</th>
<th>If these keep their word</th></tr></thead>
<tbody>
<tr><th>Record-level differential privacy, ε = {{ number(c.epsilon) }} at
δ = {{ g(c.delta) }}, {{ c.adjacency }}</th>
<td>{{ c.unit }}, in {{ c.covers }}</td>
<td>everybody: who sees the models, the other silos, the server, and the server together with
{{ colluding }}</td>
<td>{{ c.trusted }}</td></tr>
<tr><th>Secure aggregation: the sum of at least {{ s.min_clients }} silos is opened, or nothing{%
if s.aborted_rounds %} ({{ s.aborted_rounds|length }} steps opened nothing){% endif %}</th>
<td>each silo: its own part of every sum, noise included</td>
<td>a server that is {{ s.server }}, together with {{ colluding }}</td>
<td>the silo's own machine and the code that runs there</td></tr>
<tr><th>No record moves a step's sum by more than S = {{ g(c.clipping_norm) }}, nor the noise on it
is less than z·S with z = {{ number(c.noise_multiplier) }}</th>
<td>every record of a silo that does not collude</td><td>all of those above</td>
<td>the fewest honest silos, {{ c.honest }}: each adds its share</td></tr>
"""
    + QUESTIONS
    + """</tbody></table>

<h2 id="trust">Who trusted whom with what</h2>
<table class="stack trust">
<thead><tr><th>Who</th><th>Held or saw</th><th>Was trusted to</th></tr></thead>
<tbody>
<tr><th>Each silo</th><td>its own records, draws and share of the noise; every model</td>
<td>{% if m.deployed %}follow the protocol and keep its draws, its share and its keys to itself; at
most {{ colluding_silos }} may pool them with the server. Not to stay away from a step because of
whom it holds{% else %}nothing: in this simulation all silos were processes on the one machine that
held all records{% endif %}</td></tr>
<tr><th>The owner of a silo's records</th><td>the policy and the ledger on the silo's own node</td>
<td>{% if m.deployed %}keep the ledger, and put no older copy back; it declines what the policy does
not allow, whatever the server asks{% else %}nothing: a simulated silo allows what the run asks
for{% endif %}</td></tr>
<tr><th>The server</th><td>the opened sums, with their noise; masked messages; who is online, and
how long each silo takes</td>
<td>follow the protocol, and not play silos of its own. It adds no noise and draws
nobody</td></tr>
"""
    + EVALUATOR
    + """<tr><th>Everybody else</th><td>this folder: the model,
{{ "" if config.ledger else "the ledger, " }}this page</td>
<td>nothing</td></tr>
</tbody></table>

<h2 id="noise">Noise in shares</h2>
<p>Each silo adds a share of discrete Gaussian noise to its own sum. Any {{ c.honest }} shares
make up the noise that was promised: those of the fewest silos whose sum is opened,
{{ s.min_clients }}, without {{ colluding }}. Standard deviation on each number of a step's average,
over p·N = {{ "%.0f"|format(c.sampling_rate * c.population) }} records, as a part of S:</p>
<table><thead><tr><th>If the noise were added by</th><th>of S</th></tr></thead><tbody>
{% for who, share in c.noise_of_average.items() %}<tr><th>{{ who }}</th>
<td class="number">{{ "%.3g"|format(100 * share) }} %</td></tr>
{% endfor %}</tbody></table>
{% if tested %}
<p>The silos tested the model on test records of their own, and only the sums of their counts were
opened, with noise (z = {{ g(config["evaluation-noise-multiplier"]) }}), which is in ε:</p>
<table><thead><tr><th>After step</th><th>Right</th><th>Test records, about</th></tr></thead><tbody>
{% for step, told in tested.items() %}<tr><td class="number">{{ step }}</td>
<td class="number">{{ percent(told.accuracy) if told.accuracy is defined else "lost in the noise" }}
</td><td class="number">{{ "%.0f"|format(told.persons) }}</td></tr>
{% endfor %}</tbody></table>
{% endif %}

"""
    + SPENT
    + CERTIFICATE
    + """
<h2 id="uncounted">What is not covered, and not promised</h2>
<ul>
<li><strong>Tuning:</strong> {% if m.privacy.tuning.epsilon is none %}not known:
{{ m.privacy.tuning.reason }}.{% else %}ε = {{ g(m.privacy.tuning.epsilon) }}:
{{ m.privacy.tuning.reason }}. If you kept to it after looking at what your own silos' data gave,
that is not counted.{% endif %}</li>
<li><strong>Other runs:</strong> this ε covers {{ c.covers }}. Runs with another server's ledger on
the same records add to it; a silo's own ledger counts them all.</li>
<li><strong>More colluders:</strong> with more silos than {{ colluding_silos }} in league with the
server, the noise of the others is less than was promised.</li>
<li><strong>A malicious server</strong>, which plays other silos itself or departs from the
protocol.</li>
<li><strong>One record in two silos</strong> counts as two: each protects its part.</li>
<li><strong>How long a silo takes</strong> grows with the number of records it drew, and the server
sees it. <code>answer-seconds</code> in a silo's policy hides it.</li>
<li><strong>That a silo takes part</strong>, declines, or is away.</li>
<li><strong>What all records of a silo have in common</strong> may show: the model is there to learn
it. A silo as a whole is not hidden.</li>
<li><strong>Poisoning:</strong> a silo that lies can add anything to a sum; the server cannot bound
what it cannot see. That spoils the model, and nobody's privacy.</li>
"""
    + ALSO_NOT
    + PICTURES
    + """
<h2 id="check">Check it yourself</h2>
<table><tbody>
<tr><th>Sampling</th><td>{{ c.sampling }}, p = {{ g(c.sampling_rate) }} of about
N = {{ n(c.population) }} records, drawn by each silo among its own</td></tr>
<tr><th>Clipping norm</th><td>S = {{ g(c.clipping_norm) }}, of one record's gradient</td></tr>
<tr><th>Noise multiplier</th><td>z = {{ "%.4f"|format(c.noise_multiplier) }}; σ = z·S on the sum of
{{ c.honest }} silos, the fewest honest ones</td></tr>
"""
    + CODE
    + """</tbody></table>
<p>ε follows from the ledger alone, against each observer:
<code>python -m privacy.accounting ledger {{ ledger }} --delta {{ g(c.delta) }}
</code></p>
<p class="soft">What this page says of the run is in <code>metrics.json</code> and
<code>config.json</code>, beside it.</p>
"""
    + SETTINGS
)
