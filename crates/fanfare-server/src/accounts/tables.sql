-- For SQLite and PostgreSQL alike. Times are seconds since 1970, and so are named where they are not.

CREATE TABLE fanfare_users (
    email TEXT PRIMARY KEY,
    password TEXT NOT NULL,
    role TEXT NOT NULL,
    topics TEXT NOT NULL,
    disabled BIGINT NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE TABLE fanfare_access_keys (
    name TEXT PRIMARY KEY,
    digest TEXT NOT NULL UNIQUE,
    admin BIGINT NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE TABLE fanfare_refresh_tokens (
    digest TEXT PRIMARY KEY,
    family TEXT NOT NULL,
    email TEXT NOT NULL,
    expires_at BIGINT NOT NULL,
    used_at BIGINT NOT NULL
);

CREATE INDEX fanfare_refresh_tokens_by_family ON fanfare_refresh_tokens (family);

CREATE INDEX fanfare_refresh_tokens_by_email ON fanfare_refresh_tokens (email);

CREATE TABLE fanfare_revocations (
    kind TEXT NOT NULL,
    whose TEXT NOT NULL,
    before_secs BIGINT NOT NULL,
    PRIMARY KEY (kind, whose)
);

CREATE TABLE fanfare_attempts (
    who TEXT PRIMARY KEY,
    pace_ms BIGINT NOT NULL
);

CREATE TABLE fanfare_revision (
    revision BIGINT NOT NULL
);

INSERT INTO fanfare_revision (revision) VALUES (1);
