"""Users' own tables and pictures: what ``task.toml`` says of them, read and checked."""

from flower_app.tasks.columns import Category as Category
from flower_app.tasks.columns import Number as Number
from flower_app.tasks.columns import as_number as as_number
from flower_app.tasks.columns import canonical as canonical
from flower_app.tasks.holdings import Holdings as Holdings
from flower_app.tasks.holdings import as_client_data as as_client_data
from flower_app.tasks.holdings import folder_of_holders as folder_of_holders
from flower_app.tasks.holdings import no_examples as no_examples
from flower_app.tasks.holdings import node_examples as node_examples
from flower_app.tasks.holdings import read_holdings as read_holdings
from flower_app.tasks.holdings import server_examples as server_examples
from flower_app.tasks.holdings import server_test_data as server_test_data
from flower_app.tasks.images import picture_files as picture_files
from flower_app.tasks.images import read_picture as read_picture
from flower_app.tasks.model import build_for as build_for
from flower_app.tasks.model import parameters_of as parameters_of
from flower_app.tasks.model import task_spec as task_spec
from flower_app.tasks.tables import Examples as Examples
from flower_app.tasks.tables import check_names as check_names
from flower_app.tasks.tables import encoded as encoded
from flower_app.tasks.tables import read_cells as read_cells
from flower_app.tasks.tables import read_questions as read_questions
from flower_app.tasks.tables import unused_columns as unused_columns
from flower_app.tasks.task import Task as Task
from flower_app.tasks.task import read_task as read_task
