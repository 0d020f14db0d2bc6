"""A push into a repository of another git server that has nap's hook."""

from tests.nap import HTTPD, Nap, Pusher, answer


def test_push_into_a_repository_of_another_git_server_deploys(nap: Nap, pusher: Pusher) -> None:
    elsewhere = pusher.folder / f"{pusher.app}.git"
    pusher.git("init", "--quiet", "--bare", str(elsewhere))
    nap.run("hook:install", str(elsewhere))
    pusher.commit(Dockerfile=HTTPD, index_html="by the hook")
    live = pusher.push(str(elsewhere), "HEAD:refs/heads/master")
    assert live.status == 0, live.text
    assert answer(live.url) == "by the hook"
