"""A doctor asks a model about a patient. Whoever computes the answer sees neither."""

# %% A model, as scikit-learn trains it
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from privacy.inference import DataOwner, Evaluator, Plan, compile_model, from_sklearn

data = load_breast_cancer()
inputs, asked, classes, truth = train_test_split(data.data, data.target, random_state=0)
pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit(inputs, classes)

# %% Its owner compiles it, and publishes the plan
# What any patient's measurements can be, from a textbook: an encrypted question outside is refused.
low, high = data.data.min(axis=0) * 0.5, data.data.max(axis=0) * 2
compiled = compile_model(
    from_sklearn(pipeline),
    input_shape=(30,),
    input_range=(low, high),
    class_names=[str(name) for name in data.target_names],
)
published = compiled.plan.to_json()  # no weights are in it
print(compiled.plan)

# %% The doctor makes keys for that plan, and encrypts
plan = Plan.from_json(published)
doctor = DataOwner(plan)
question = doctor.encrypt(asked[0])
print(f"keys {len(doctor.public_material()):,} bytes, question {len(question):,}")

# %% The evaluator has the model and public keys, and computes on what it cannot read
evaluator = Evaluator(compiled, doctor.public_material())
reply = evaluator.evaluate(question)

# %% Only the doctor can read the answer
answer = doctor.decrypt(reply)
print(f"answer: {answer.name}; in truth {data.target_names[truth[0]]}")

# %% Twenty more patients, beside the model in the clear
same = 0
for patient in asked[:20]:
    encrypted = doctor.decrypt(evaluator.evaluate(doctor.encrypt(patient)))
    same += encrypted.label == pipeline.predict(patient[None])[0]
print(f"{same} of 20 encrypted answers are the model's own")
