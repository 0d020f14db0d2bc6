"""What every other folder needs: errors, deadlines, paths, settings, the channel, logs, escaping, privacy, supervision.

It knows no app, no release, no etcd and no engine, and imports nothing else of nap.
"""
