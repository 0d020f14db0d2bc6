# Deploys by nap where gitolite.conf says `option nap = deploy`, and lets `git push` end as the deploy did.
# Written by `nap gitolite:install`.
package Gitolite::Triggers::Nap;

use strict;
use warnings;

use Fcntl;

use Gitolite::Rc;
use Gitolite::Common;
use Gitolite::Conf::Load;

my $verdict;    # a file without a name; this process, gitolite-shell, lives as long as the push

# Tell the hook, which is in every repository, that this push is one to deploy, and where to write how that went.
sub pre_git {
    my ( $repo, $aa ) = @_[ 1, 3 ];
    delete @ENV{qw(NAP_VERDICT NAP_GATE)};    # of nobody else
    return unless $aa eq 'W' and option( $repo, 'nap' ) eq 'deploy' and is_ours($repo);
    open( $verdict, '+>', undef ) and fcntl( $verdict, F_SETFD, 0 ) or _die "no temporary file for nap: $!";
    $ENV{NAP_VERDICT} = '/dev/fd/' . fileno($verdict);
    $ENV{NAP_STATE}   = '{state}';
}

# Whether a push is a person's, also one that a copy redirected here; or else the master's, to a copy that deploys too.
sub is_ours {
    my $repo = shift;
    return 1 if not $rc{FROM_SERVER} or $rc{REDIRECTED_PUSH};
    return grep { $_ eq $rc{HOSTNAME} } split ' ', option( $repo, 'nap.copies' );
}

# A push of which gitolite takes nothing runs no hook, and is not one of what is there already.
sub access_2 {
    my $result = $_[5];
    return unless $ENV{NAP_VERDICT} and $result =~ /DENIED/;
    open( my $file, '>', $ENV{NAP_VERDICT} ) or return;
    print $file 'refused';
}

# git ignores how post-receive ends, and runs none where no ref moved: here both are made good.
sub post_git {
    my $repo = $_[1];
    return if not $verdict or $ENV{REQUEST_URI};    # a push over HTTP is two requests, and none has an exit status
    seek( $verdict, 0, 0 );
    my $said = do { local $/; <$verdict> } || '';
    gl_log( 'nap', $repo, $said || 'no hook ran' );
    return if $said eq 'good' or $said eq 'refused';
    open( STDOUT, '>&', \*STDERR );                 # the client reads git's protocol there
    _system( '{python}', qw(-P -m nap_receiver.settle), $said, "$rc{GL_REPO_BASE}/$repo.git" );
}

1;
