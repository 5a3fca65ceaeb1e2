"""Who may queue and run how much: the limits of server and queue, counted by array element, until F."""

from .errors import COUNT_LIMIT, QUEUE_FULL, RESOURCE_LIMIT, Refused
from .settings import limits as parse

KINDS = {"u": "user", "g": "group", "p": "project"}


def entities(jobs):
    """What counts: single jobs and array elements the server still holds. An ending job counts until F."""
    return [job for job in jobs if not job.array and job.live]


def check_submission(settings, jobs, job, elements):
    """Raises Refused if `elements` more of `job` would be too many."""
    counted = entities(jobs)
    queue = settings.queue(job.queue)
    check_queuable(queue, job, counted, elements)
    for holder, where in ((settings.server, None), (queue, job.queue)):
        inside = [other for other in counted if where is None or other.queue == where]
        check_count(holder.get("max_queued"), where, "", job, inside, elements)
        waiting = [other for other in inside if other.state not in "RE"]
        check_count(holder.get("queued_jobs_threshold"), where, " of jobs in 'Q' state", job, waiting, elements)
        check_resources(holder, where, job, inside, elements)


def check_queuable(queue, job, counted, elements):
    most = queue.get("max_queuable")
    if most is not None and len([other for other in counted if other.queue == job.queue]) + elements > most:
        raise Refused(QUEUE_FULL)


def check_count(text, where, what, job, counted, elements):
    for kind, name, most in applying(text, job):
        if len(of_entity(counted, kind, job)) + elements <= most:
            continue
        if name == "PBS_GENERIC":
            # OpenPBS really says "queue generic's", whatever the queue is called.
            owner = "queue generic's" if where else "complex's"
            raise Refused(COUNT_LIMIT, "would exceed %s per-%s limit%s" % (owner, KINDS[kind], what))
        place = "queue " + where if where else "complex"
        jobs = "Maximum number of jobs%s for %s %s already in %s" % (what and what[8:], KINDS[kind], name, place)
        raise Refused(COUNT_LIMIT, jobs)


def check_resources(holder, where, job, counted, elements):
    for attribute, text in holder.items():
        if not attribute.startswith("max_queued_res."):
            continue
        resource = attribute.partition(".")[2]
        for kind, name, most in applying(text, job):
            used = sum(amount(other, resource) for other in of_entity(counted, kind, job))
            if used + elements * amount(job, resource) > most:
                place = "queue " + where if where else "complex"
                per = "per-%s limit on resource %s in %s" % (KINDS[kind], resource, place)
                raise Refused(RESOURCE_LIMIT, "would exceed " + per)


def applying(text, job):
    """[(kind, name, number)]: a limit of a named user, group or project goes before the generic one."""
    found = parse(text) if text else {}
    for kind in KINDS:
        name = entity_name(kind, job)
        for who in (name, "PBS_GENERIC"):
            if (kind, who) in found:
                yield kind, who, found[kind, who]
                break


def entity_name(kind, job):
    return {"u": job.user, "g": job.group_list or job.user, "p": job.project}[kind]


def of_entity(jobs, kind, job):
    return [other for other in jobs if entity_name(kind, other) == entity_name(kind, job)]


def amount(job, resource):
    value = job.resources.get(resource, "0")
    return int(value) if str(value).isdigit() else 0


def run_obstacle(settings, jobs, job):
    """The comment of a job that may not start because of max_run, else None."""
    holders = (settings.server, settings.queue(job.queue))
    if not any(name in holder for holder in holders for name in ("max_run", "max_user_run")):
        return None
    running = [other for other in entities(jobs) if other.state in "RE"]
    for holder, where in ((settings.server, None), (settings.queue(job.queue), job.queue)):
        inside = [other for other in running if where is None or other.queue == where]
        for kind, _, most in applying(holder.get("max_run"), job):
            if len(of_entity(inside, kind, job)) >= most:
                place = "queue" if where else "server"
                return "Not Running: %s has reached %s running job limit." % (KINDS[kind].capitalize(), place)
        if holder.get("max_user_run") is not None and len(of_entity(inside, "u", job)) >= holder["max_user_run"]:
            place = "queue" if where else "server"
            return "Not Running: User has reached %s running job limit." % place
    return None
